"""One open audio file, decoded: the code path that :mod:`probe` and :mod:`decode` share.

Because both count and deliver the same frames through the same code, ``probe(path).frames`` is a promise that
``decode(path)`` keeps. Encoder delay and padding are removed where the file describes them (LAME tag, MP4
edit list, Opus pre-skip, Vorbis end position); where it does not, they are part of
the track, as is the padding in the last AAC packet of an MP4 (less than 1,024 frames), which libav keeps.

Security. libav gets an open file and the name of one demuxer, never a path: no playlist, image sequence,
network protocol or reference to another file can be followed, and decoders outside the list below never
start.

Video. An MP4 or Ogg with moving pictures is refused (``UNSUPPORTED_CONTAINER``), cover art is fine: an
original is stored and served back as a *recording*, and most of a film's bytes would be paid for and never
heard.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from servers.media.blocks import BLOCK_FRAMES, Block
from servers.media.downmix import stereo_matrix
from servers.media.errors import MediaError, Reason
from servers.media.sniff import Container, sniff
from servers.media.structure import MAX_CHANNELS, promise

MIN_SAMPLE_RATE = 1_000
MAX_SAMPLE_RATE = 384_000

_DEMUXERS = {Container.ADTS: "aac", Container.MP4: "mp4"}
_EXTENSIONS = {Container.ADTS: "aac", Container.MP4: "m4a"}
_PCM = {f"pcm_{kind}" for kind in ("u8", "s8", "s16le", "s16be", "s24le", "s24be", "s32le", "s32be")} | {
    f"pcm_{kind}" for kind in ("f32le", "f32be", "f64le", "f64be", "alaw", "mulaw")
}
_CODECS = {
    Container.MP3: {"mp3"},
    Container.ADTS: {"aac"},
    Container.MP4: {"aac", "alac", "mp3", "flac", "opus"},
    Container.FLAC: {"flac"},
    Container.OGG: {"vorbis", "opus", "flac"},
    Container.WAV: _PCM,
    Container.AIFF: _PCM,
}
_LOSSLESS = {"flac", "alac"} | _PCM
_PICTURES = {"mjpeg", "png", "bmp", "gif", "webp", "tiff"}
_ALIASES = {"mp3float": "mp3", "libopus": "opus"}


def is_supported_rate(rate: int) -> bool:
    """Rates we keep: 1 kHz to 384 kHz that FLAC can carry, because stems are stored at the track's own rate.

    FLAC frame headers hold rates to 65,535 Hz, and multiples of 10 Hz above (RFC 9639 §9.1.2).
    """
    return MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE and (rate <= 65_535 or rate % 10 == 0)


def _refuse_references(*_: Any) -> Any:
    raise PermissionError("media files may not refer to other files")


class Source:
    """An open file. Use as a context manager; not thread-safe.

    Attributes:
        container, codec, extension: what the content is (``extension`` without a dot).
        sample_rate: Hz, as decoded (HE-AAC: twice its header's).
        channels: of the file, before any downmix.
        bit_depth: bits per sample of PCM and lossless files, else ``None``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open and decode the first frame.

        Raises:
            MediaError: the file is not acceptable audio.
            OSError: the file cannot be read.
        """
        with ExitStack() as stack:
            file = stack.enter_context(_open_regular(path))
            size = os.fstat(file.fileno()).st_size
            self.container, offset = sniff(file, size)
            self._promise = promise(file, size, self.container, offset)
            file.seek(0)
            opened = stack.enter_context(_open_container(file, self.container))
            self._input = opened
            self._stream = _choose_stream(opened)
            name = self._stream.codec_context.name
            self.codec = _ALIASES.get(name, name)
            if self.codec not in _CODECS[self.container]:
                raise MediaError(Reason.UNSUPPORTED_CODEC, "The audio is encoded in a way that is not accepted.")
            self._lossless = self.codec in _LOSSLESS
            self.extension = _EXTENSIONS.get(self.container, self.container.value)
            self._packets = self._bad_packets = 0
            self._frames = self._decode()
            self._first = next(self._frames, None)
            if self._first is None:
                self._judge(0)
                raise MediaError(Reason.NO_FRAMES, "The file contains no sound.")
            self.sample_rate = self._first.sample_rate
            self.channels = self._first.layout.nb_channels
            self.bit_depth = self._bit_depth()
            self._check_format()
            self._close = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._frames.close()  # a demuxer that is still iterating would outlive its container
        self._close.close()

    def blocks(self, start: int = 0) -> Iterator[Block]:
        """Decode from frame ``start`` on (everything before is decoded and dropped, so positions are exact).

        Yields:
            Blocks of 1 or 2 channels and at most ``BLOCK_FRAMES`` frames, at the file's rate.

        Raises:
            MediaError: at the end, if the file proves damaged or shorter than it says. Can be called once.
        """
        matrix = stereo_matrix(_channel_names(self._first)) if self._first and self.channels > 2 else None
        pending: list[NDArray[np.float32]] = []
        position, held = 0, 0
        for frame in self._all_frames():
            skip = min(max(start - position, 0), frame.samples)
            position += frame.samples
            if skip == frame.samples:
                continue
            samples = _to_float(frame)[:, skip:]
            pending.append(samples if matrix is None else matrix @ samples)
            held += samples.shape[1]
            while held >= BLOCK_FRAMES:
                joined = np.concatenate(pending, axis=1)
                pending = [joined[:, BLOCK_FRAMES:]]
                yield Block(np.ascontiguousarray(joined[:, :BLOCK_FRAMES]), self.sample_rate, position - held)
                held -= BLOCK_FRAMES
        if held:
            yield Block(np.concatenate(pending, axis=1), self.sample_rate, position - held)
        self._judge(position)

    def _all_frames(self) -> Iterator[AudioFrame]:
        if self._first is not None:
            yield self._first
            self._first = None
        for frame in self._frames:
            if frame.sample_rate != self.sample_rate or frame.layout.nb_channels != self.channels:
                raise MediaError(Reason.CORRUPT, "The sample rate or the channels change within the file.")
            yield frame

    def _decode(self) -> Generator[AudioFrame, None, None]:
        """Frames of the chosen stream; packets that cannot be decoded are counted and skipped."""
        packets = self._input.demux(self._stream)  # a generator, whatever its stub says
        try:
            while True:
                try:
                    packet = next(packets, None)
                except av.error.FFmpegError:
                    self._bad_packets += 1
                    packet = None
                if packet is None:
                    return
                self._packets += 1
                try:
                    frames = packet.decode()
                except av.error.EOFError:
                    return
                except av.error.FFmpegError:
                    self._bad_packets += 1
                    continue
                for frame in frames:
                    if frame.samples:
                        yield frame
        finally:
            cast(Generator[object, None, None], packets).close()

    def _judge(self, frames: int) -> None:
        """After the last frame: did the file deliver?"""
        # Lossy streams are cut at both ends as a matter of course, and recover from a damaged packet.
        tolerated = 0 if self._lossless else 2 + self._packets // 50
        promised = self._promise.frames
        short = promised is not None and frames < promised
        if self._bad_packets > tolerated:
            raise MediaError(
                Reason.TRUNCATED if short else Reason.CORRUPT, "Parts of the audio are damaged or missing."
            )
        if promised is not None and frames != promised:
            raise MediaError(
                Reason.TRUNCATED if short else Reason.CORRUPT,
                f"The file promises {promised} frames but holds {frames}.",
            )

    def _check_format(self) -> None:
        if self.channels > MAX_CHANNELS:
            raise MediaError(
                Reason.TOO_MANY_CHANNELS,
                f"The file has {self.channels} channels; at most {MAX_CHANNELS} fit.",
            )
        if not is_supported_rate(self.sample_rate):
            raise MediaError(Reason.UNSUPPORTED_SAMPLE_RATE, f"A sample rate of {self.sample_rate} Hz is not accepted.")
        if self._first is not None and self._first.format.name.rstrip("p") not in _SCALES:
            raise MediaError(Reason.UNSUPPORTED_CODEC, "The audio is encoded in a way that is not accepted.")

    def _bit_depth(self) -> int | None:
        if self.codec in ("pcm_alaw", "pcm_mulaw"):
            return 8
        if self.codec in _PCM:
            return int("".join(filter(str.isdigit, self.codec)))
        if self._promise.bit_depth is not None:
            return self._promise.bit_depth
        if self._lossless and self._first is not None:
            return 16 if self._first.format.name.startswith("s16") else 24
        return None


def _open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file: not a symbolic link (it may point anywhere), nor a pipe or device (it may
    hang).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if os.path.islink(path):
            raise MediaError(Reason.NOT_AUDIO, "A symbolic link is not audio.") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise MediaError(Reason.NOT_AUDIO, "Only a regular file can be audio.")
    return os.fdopen(descriptor, "rb")


def _open_container(file: BinaryIO, container: Container) -> InputContainer:
    decoders = {"mp3float", *_CODECS[container]}
    options = {"codec_whitelist": ",".join(sorted(decoders)), "protocol_whitelist": "none"}
    if container is Container.WAV:
        options["max_size"] = "65536"  # the default, 4 KiB, costs sixteen times as many Python calls
    try:
        return av.open(
            file,
            "r",
            format=_DEMUXERS.get(container, container.value),
            container_options=options,
            metadata_errors="replace",
            buffer_size=65_536,
            io_open=_refuse_references,
        )
    except av.error.EOFError as error:
        raise MediaError(Reason.TRUNCATED, "The file ends within its header.") from error
    except av.error.FFmpegError as error:
        raise MediaError(Reason.CORRUPT, "The file is damaged and cannot be read.") from error


def _choose_stream(container: InputContainer) -> AudioStream:
    """The first audio stream of a file without moving pictures."""
    if not container.streams.audio:
        raise MediaError(Reason.NO_AUDIO_STREAM, "The file has no audio.")
    for video in container.streams.video:
        context = video.codec_context
        if context is None or context.name not in _PICTURES:
            raise MediaError(Reason.UNSUPPORTED_CONTAINER, "This is a video; extract its audio and send that.")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise MediaError(Reason.UNSUPPORTED_CODEC, "The audio is encoded in a way that is not accepted.")
    # One thread: audio decoders gain nothing from more, and the answer must not depend on timing.
    stream.codec_context.thread_count = 1
    if stream.codec_context.name in _LOSSLESS:
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
    return stream


def _channel_names(frame: AudioFrame) -> list[str]:
    return [channel.name for channel in frame.layout.channels]


_DTYPES: dict[str, type[np.generic]] = {
    "u8": np.uint8,
    "s16": np.int16,
    "s32": np.int32,
    "flt": np.float32,
    "dbl": np.float64,
}
_SCALES = {"u8": 2.0**-7, "s16": 2.0**-15, "s32": 2.0**-31, "flt": 1.0, "dbl": 1.0}


def _to_float(frame: AudioFrame) -> NDArray[np.float32]:
    """Samples as float32 ``[channels, frames]``, full scale ±1: exact for integers of up to 24 bits."""
    kind = frame.format.name.rstrip("p")
    channels, dtype = frame.layout.nb_channels, _DTYPES[kind]
    planes: tuple[Any, ...] = frame.planes
    if frame.format.is_planar:
        # Not to_ndarray(): with 8 channels PyAV 18 takes a ninth plane from beyond AVFrame.data, and crashes.
        samples = np.stack([np.frombuffer(plane, dtype, frame.samples) for plane in planes[:channels]])
    else:
        samples = np.frombuffer(planes[0], dtype, frame.samples * channels).reshape(-1, channels).T
    # 32-bit integers are rounded to float32 first; the power of two that follows is exact.
    result = samples.astype(np.float32, order="C")
    if kind == "u8":
        result -= 128
    if _SCALES[kind] != 1.0:
        result *= np.float32(_SCALES[kind])
    return result
