"""One writer per format: arrays in, bytes out, append-only. :class:`servers.media.encode.Encoder` is their
face.

The codecs run in libavcodec, outside the GIL. libav's muxers are used for Ogg only: those for FLAC, WAV and
MP3 seek back to fill in what they did not know at the start, and we know it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, Protocol, cast

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.packet import Packet
from numpy.typing import NDArray

from servers.media import mp3info
from servers.media import tags as tagging
from servers.media.wavheader import wav_header

LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""Channel layouts by count, in FLAC's order (RFC 9639 §9.1.3)."""

FLAC_LEVEL = "5"
"""On a pop song, one run side by side: level 0 gives 76.0 % of the PCM size at 468 times real time, level 5 71.2 % at
431, level 8 69.4 % at 283.
"""

_LAME_QUALITY = "7"
"""At 320 kbit/s the slower searches gained nothing on a pop song: level 7 ran at 46 times real time with 42.2 dB SNR,
level 5 at 31 with 40.8 dB, level 2 at 16 with 39.0 dB. SNR is not hearing, but at this rate nothing argues for them.
"""

MP3_KILOBITS = {1: 160, 2: 320}
OPUS_KILOBITS = {1: 128, 2: 192}
OPUS_RATE = 48_000
_OPUS_PAGE_MICROSECONDS = 100_000
_FULL_SCALE_24 = 8_388_608.0


class Writer(Protocol):
    """What a format implements. ``samples`` is float32 ``[channels, n]``, n ≥ 1, finite."""

    def write(self, samples: NDArray[np.float32]) -> bytes: ...

    def finish(self) -> bytes: ...


class WavWriter:
    """WAV, float32, unchanged samples."""

    def __init__(self, *, sample_rate: int, channels: int, frames: int, tags: Mapping[str, str]) -> None:
        self._header = wav_header(sample_rate=sample_rate, channels=channels, frames=frames, tags=tags)

    def write(self, samples: NDArray[np.float32]) -> bytes:
        header, self._header = self._header, b""
        return header + samples.T.astype("<f4", order="C").tobytes()

    def finish(self) -> bytes:
        header, self._header = self._header, b""
        return header


class FlacWriter:
    """FLAC, 24 bits. Samples are rounded half to even and clipped to [-2^23, 2^23 - 1]."""

    def __init__(self, *, sample_rate: int, channels: int, frames: int, tags: Mapping[str, str]) -> None:
        options = {"compression_level": FLAC_LEVEL}
        self._encoder = _Encoder("flac", "s32", sample_rate, channels, options=options)
        self._header = _flac_header(self._encoder.context.extradata or b"", frames, tags)

    def write(self, samples: NDArray[np.float32]) -> bytes:
        # Exact in float32: scaling is by a power of two, and both bounds are representable.
        scaled = np.rint(samples * np.float32(_FULL_SCALE_24))
        integers = np.clip(scaled, -_FULL_SCALE_24, _FULL_SCALE_24 - 1, out=scaled).astype(np.int32)
        # libavcodec takes the 24 bits from the top of 32.
        interleaved = np.ascontiguousarray((integers << 8).T).reshape(1, -1)
        return self._emit(self._encoder.encode(interleaved, samples.shape[1]))

    def finish(self) -> bytes:
        return self._emit(self._encoder.flush())

    def _emit(self, packets: Iterable[Packet[Any]]) -> bytes:
        header, self._header = self._header, b""
        # A packet without data carries a STREAMINFO update, which an append-only file has no place for.
        return header + b"".join(bytes(packet) for packet in packets if packet.size)


class Mp3Writer:
    """MP3, constant 320 kbit/s (160 in mono), with an Info frame so that decoders give the exact length.

    Constant rather than V0: its Info frame can be written first, and positions are proportional to bytes, so
    that players seek in a stream that is still growing.
    """

    def __init__(self, *, sample_rate: int, channels: int, frames: int, tags: Mapping[str, str]) -> None:
        self._header = tagging.id3(tags)
        self._rate, self._frames, self._kilobits = sample_rate, frames, MP3_KILOBITS[channels]
        options = {"compression_level": _LAME_QUALITY}
        self._encoder = _Encoder("libmp3lame", "fltp", sample_rate, channels, kilobits=self._kilobits, options=options)
        self._left = mp3info.mpeg_frames(frames)
        self._started = False

    def write(self, samples: NDArray[np.float32]) -> bytes:
        return self._emit(self._encoder.encode(np.ascontiguousarray(samples), samples.shape[1]))

    def finish(self) -> bytes:
        return self._emit(self._encoder.flush())

    def _emit(self, packets: Iterable[Packet[Any]]) -> bytes:
        parts, self._header = [self._header], b""
        for packet in packets:
            data = bytes(packet)
            if not self._started:
                self._started = True
                parts.append(
                    mp3info.info_frame(data[:4], sample_rate=self._rate, kilobits=self._kilobits, frames=self._frames)
                )
            # LAME may flush one frame more than the last sample needs; the Info frame does not count it.
            if self._left:
                self._left -= 1
                parts.append(data)
        return b"".join(parts)


class OpusWriter:
    """Ogg Opus at 48 kHz, 192 kbit/s (128 in mono), in pages of a tenth of a second."""

    def __init__(self, *, sample_rate: int, channels: int, frames: int, tags: Mapping[str, str]) -> None:
        del sample_rate, frames  # Opus has one rate; the last page's position tells the length
        self._sink = _Sink()
        # bitexact: a fixed stream serial number and vendor, so that equal input gives equal bytes.
        options = {"page_duration": str(_OPUS_PAGE_MICROSECONDS), "fflags": "+bitexact", "flush_packets": "1"}
        self._container = av.open(self._sink, "w", format="ogg", container_options=options)
        stream = self._container.add_stream("libopus", rate=OPUS_RATE, layout=LAYOUTS[channels])
        stream.bit_rate = OPUS_KILOBITS[channels] * 1000
        stream.metadata.update({tagging.VORBIS[name]: value for name, value in tags.items()})
        self._stream = stream
        self._encoder = _Encoder("libopus", "flt", OPUS_RATE, channels, context=stream.codec_context)

    def write(self, samples: NDArray[np.float32]) -> bytes:
        interleaved = np.ascontiguousarray(samples.T).reshape(1, -1)
        return self._mux(self._encoder.encode(interleaved, samples.shape[1]))

    def finish(self) -> bytes:
        written = self._mux(self._encoder.flush())
        self._container.close()
        return written + self._sink.take()

    def _mux(self, packets: Iterable[Packet[Any]]) -> bytes:
        for packet in packets:
            packet.stream = self._stream
            self._container.mux(packet)
        return self._sink.take()


class _Sink:
    """A file that can only be appended to: libav sees no ``seek`` and so never patches."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


class _Encoder:
    """A libavcodec encoder fed with arrays."""

    def __init__(
        self,
        codec: str,
        sample_format: str,
        sample_rate: int,
        channels: int,
        *,
        kilobits: int | None = None,
        options: dict[str, str] | None = None,
        context: AudioCodecContext | None = None,
    ) -> None:
        if context is None:
            context = cast(AudioCodecContext, av.CodecContext.create(codec, "w"))
        context.sample_rate = sample_rate
        context.layout = LAYOUTS[channels]
        context.format = sample_format
        context.time_base = Fraction(1, sample_rate)
        if kilobits is not None:
            context.bit_rate = kilobits * 1000
        context.options = options or {}
        context.thread_count = 1
        context.open()
        self.context = context
        self._rate, self._format, self._layout = sample_rate, sample_format, LAYOUTS[channels]
        self._position = 0

    def encode(self, samples: NDArray[np.float32] | NDArray[np.int32], frames: int) -> list[Packet[Any]]:
        frame = AudioFrame.from_ndarray(samples, format=self._format, layout=self._layout)
        frame.sample_rate = self._rate
        frame.time_base = Fraction(1, self._rate)
        frame.pts = self._position
        self._position += frames
        return self.context.encode(frame)

    def flush(self) -> list[Packet[Any]]:
        return self.context.encode(None)


def _flac_header(stream_info: bytes, frames: int, tags: Mapping[str, str]) -> bytes:
    """The marker, STREAMINFO with the total filled in, and the tags if there are any (RFC 9639 §8.1, §8.2, §8.6)."""
    if len(stream_info) != 34:
        raise RuntimeError("libavcodec did not describe its FLAC stream")
    # Bytes 10 to 17: 20 bits sample rate, 3 channels - 1, 5 bits - 1, 36 total (0 = unknown, if it does not
    # fit).
    packed = int.from_bytes(stream_info[10:18], "big") & ~0xF_FFFF_FFFF
    packed |= frames if frames < 1 << 36 else 0
    body = stream_info[:10] + packed.to_bytes(8, "big") + bytes(16)  # MD5 zero: unknown
    if not tags:
        return b"fLaC" + b"\x80\0\0\x22" + body  # 0x80: the last metadata block
    comment = tagging.vorbis_comment(tags)
    return b"fLaC" + b"\0\0\0\x22" + body + b"\x84" + len(comment).to_bytes(3, "big") + comment
