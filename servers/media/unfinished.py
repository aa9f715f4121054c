"""Decoding what :class:`~servers.media.encode.Encoder` has written so far of a lossless file."""

from __future__ import annotations

from collections.abc import Sequence

import av
import av.error
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from servers.media.encode import AudioFormat
from servers.media.errors import MediaError, Reason
from servers.media.wavheader import wav_header

LOSSLESS = (AudioFormat.FLAC, AudioFormat.WAV)
_FLAC_HEADER_BYTES = 42  # the marker and STREAMINFO, which says it is the last metadata block
_STREAMINFO = slice(8, _FLAC_HEADER_BYTES)
_STEPS = np.float32(2.0**-31)

Samples = NDArray[np.float32]


class UnfinishedFile:
    """Decodes a file without tags whose bytes come in order, in parts of any size, and end anywhere.

    Not thread-safe, but calls may come from different threads in turn.
    """

    def __init__(self, format: AudioFormat, *, sample_rate: int, channels: int, frames: int) -> None:
        """``sample_rate``, ``channels`` and ``frames`` are those that its encoder was told.

        Raises:
            ValueError: the format is not lossless.
        """
        if format not in LOSSLESS:
            raise ValueError(f"{format} is not lossless")
        self._channels = channels
        self._flac: AudioCodecContext | None = None
        self._is_flac = format is AudioFormat.FLAC
        header = wav_header(sample_rate=sample_rate, channels=channels, frames=frames)
        self._header_bytes = _FLAC_HEADER_BYTES if self._is_flac else len(header)
        self._header = b""
        self._rest = b""
        self._next = 0  # frame of FLAC

    def decode(self, data: bytes) -> Samples:
        """What can be decoded now, float32 [channels, n]: exactly what was stored.

        Raises:
            MediaError: CORRUPT; nothing more can be decoded then.
        """
        missing = self._header_bytes - len(self._header)
        self._header += data[:missing]
        if not (data := data[missing:]):
            return self._joined([])
        return self._from_flac(data) if self._is_flac else self._from_wav(data)

    def finish(self) -> Samples:
        """What was held back. Raises MediaError as ``decode`` does."""
        parts = []
        while self._flac is not None and (part := self._from_flac(b"")).size:
            parts.append(part)
        return np.concatenate([self._joined([]), *parts], axis=1)

    def _from_wav(self, data: bytes) -> Samples:
        data = self._rest + data
        whole = len(data) - len(data) % (4 * self._channels)
        self._rest = data[whole:]
        interleaved = np.frombuffer(data[:whole], "<f4").reshape(-1, self._channels)
        return np.ascontiguousarray(interleaved.T, np.float32)

    def _from_flac(self, data: bytes) -> Samples:
        if self._flac is None:
            self._flac = av.CodecContext.create("flac", "r")
            self._flac.extradata = self._header[_STREAMINFO]
            self._flac.options = {"err_detect": "crccheck+explode"}
            self._flac.thread_count = 1
        parts = []
        try:
            # The parser finds the frames; given nothing, it gives one of those of which it was not sure yet.
            for packet in self._flac.parse(data):
                if packet.size and _frame_number(bytes(packet)) != self._next:  # the parser drops what is damaged
                    raise _damaged()
                self._next += 1
                parts += self._flac.decode(packet)
        except av.error.FFmpegError as error:
            raise _damaged() from error
        return self._joined(parts)

    def _joined(self, frames: Sequence[AudioFrame]) -> Samples:
        parts = [np.zeros((self._channels, 0), np.float32)]
        for frame in frames:
            samples = frame.to_ndarray()
            if not frame.format.is_planar:
                samples = samples.reshape(-1, self._channels).T
            parts.append(samples.astype(np.float32) * _STEPS)  # exact: libavcodec gives 24 bits in the top of 32
        return np.concatenate(parts, axis=1)


def _frame_number(frame: bytes) -> int:
    """The number in the header of a FLAC frame of a stream with a fixed block size, as ours are (RFC 9639 §9.1.5)."""
    first = frame[4]
    if first < 0x80:
        return first
    length = 8 - (first ^ 0xFF).bit_length()  # leading ones
    number = first & (0x7F >> length)
    for byte in frame[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    return number


def _damaged() -> MediaError:
    return MediaError(Reason.CORRUPT, "Parts of the audio are damaged or missing.")
