"""A grain library: what it is, and how it is stored."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from contrafact.engine.v1 import grains_pb2
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from servers.grains.pitch import HIGH_HZ, LOW_HZ
from servers.media.encode import AudioFormat, Encoder
from servers.media.source import is_supported_rate

Samples = NDArray[np.float32]
Counts = NDArray[np.int64]

VERSION = 1
"""Of the format, and of what was measured: a change of either is another version, and other bytes."""

MIN_FRAMES = 512
MAX_GRAINS = 200_000
MAX_SECONDS = 1200
MAX_SAMPLES = MAX_SECONDS * 48_000 * 2
"""Frames times channels: memory is bounded whatever the rate."""
_RATES = range(8_000, 384_001)
_LARGEST = 1e6  # magnitude of a sample
_LATEST = 172_800.0 + MAX_SECONDS
_MOST_FRAMES_PER_BYTE = 65_535 / 11  # of FLAC: RFC 9639, a frame of two constant subframes would be longer
_FLAC = b"fLaC\x80\0\0\x22"  # STREAMINFO, and no other metadata
_PIECE = 1 << 18  # frames encoded at once
_FRAMES_AT_ONCE = 64  # of FLAC, of some thousand samples each


class InvalidLibrary(ValueError):
    """The bytes are no grain library that this version can use. The message says why, without values of the bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Library:
    """Grains, in the order in which they are in the sound.

    Attributes:
        sample_rate: in Hz.
        channels: 1 or 2.
        audio: ``[channels, frames]``, all grains one after the other.
        offsets: int64 ``[n]``, the first frame of each in ``audio``.
        lengths: int64 ``[n]``, frames of each, at least 512.
        starts: float64 ``[n]``, where each began in the sound, in seconds.
        pitches: float32 ``[n]``, Hz from C1 to C7; 0: none.
        rms: float32 ``[n]``, of all its samples.
        peaks: float32 ``[n]``, the largest magnitude of its samples.
        brightness: float32 ``[n]``, spectral centroid in Hz.
        attacks: int64 ``[n]``, frames from its onset to its peak.
        onsets: int64 ``[n]``, frames from its beginning to its onset; ``onsets + attacks < lengths``.
    """

    sample_rate: int
    channels: int
    audio: Samples
    offsets: Counts
    lengths: Counts
    starts: NDArray[np.float64]
    pitches: Samples
    rms: Samples
    peaks: Samples
    brightness: Samples
    attacks: Counts
    onsets: Counts

    def __len__(self) -> int:
        """How many grains."""
        return len(self.lengths)

    @property
    def frames(self) -> int:
        """Of all grains."""
        return self.audio.shape[1]


def encode(library: Library, pause: Callable[[], object] = lambda: None) -> bytes:
    """A library as a serialized GrainLibrary: the same gives the same bytes, here and with the same codec elsewhere.

    Samples are rounded to 24 bits of full scale, or of the power of two above it that holds the largest. What was
    decoded is encoded to the bytes it came from. ``pause`` is called again and again; what it raises ends the work.
    """
    scale = _scale(library.audio)
    stored = grains_pb2.GrainLibrary(
        version=VERSION,
        sample_rate=library.sample_rate,
        channels=library.channels,
        frames=library.frames,
        scale=scale,
        lengths=library.lengths.astype("<u4").tobytes(),
        starts=library.starts.astype("<f8").tobytes(),
        pitches=library.pitches.astype("<f4").tobytes(),
        rms=library.rms.astype("<f4").tobytes(),
        peaks=library.peaks.astype("<f4").tobytes(),
        brightness=library.brightness.astype("<f4").tobytes(),
        attacks=library.attacks.astype("<u4").tobytes(),
        onsets=library.onsets.astype("<u4").tobytes(),
        audio=_flac(library.audio, library.sample_rate, scale, pause),
    )
    return stored.SerializeToString(deterministic=True)


def decode(data: bytes, *, audio: bool = True) -> Library:
    """What :func:`encode` made. Trusts nothing: takes memory only for audio that is there and that 20 minutes hold.

    Args:
        data: as it is stored.
        audio: whether it is wanted; if not, it is not looked at, and has no frames.

    Raises:
        InvalidLibrary: damaged, inconsistent, or of another version.
    """
    return decoded(parsed(data), audio=audio)


def parsed(data: bytes | bytearray) -> grains_pb2.GrainLibrary:
    """What :func:`decoded` takes: the data are not needed any more. Raises InvalidLibrary."""
    try:
        stored = grains_pb2.GrainLibrary()
        stored.MergeFromString(data)  # type: ignore[arg-type]  # a bytearray is copied no more than bytes are
    except DecodeError as error:
        raise InvalidLibrary("it is no serialized grain library") from error
    return stored


def decoded(
    stored: grains_pb2.GrainLibrary, pause: Callable[[], object] = lambda: None, *, audio: bool = True
) -> Library:
    """As :func:`decode`. ``pause`` is called again and again; what it raises ends the work."""
    _require(stored.version == VERSION, "its version is not known")
    _require(stored.sample_rate in _RATES, "its sample rate is out of range")
    _require(stored.channels in (1, 2), "it has neither one channel nor two")
    count = len(stored.lengths) // 4
    _require(1 <= count <= MAX_GRAINS, f"it has not 1 to {MAX_GRAINS:,} grains")
    lengths, attacks, onsets = (
        _array(field, "<u4", count).astype(np.int64) for field in (stored.lengths, stored.attacks, stored.onsets)
    )
    _require(lengths.min() >= MIN_FRAMES, "a grain is too short")
    _require(lengths.sum() == stored.frames, "its grains are not as long as its audio")
    most = min(MAX_SECONDS * stored.sample_rate, MAX_SAMPLES // stored.channels)
    _require(stored.frames <= most, "its audio is too long")
    _require(bool((onsets + attacks < lengths).all()), "an onset or a peak is outside its grain")
    starts = _numbers(stored.starts, "<f8", count, 0, _LATEST)
    _require(bool((np.diff(starts) >= 0).all()), "its grains are out of order")
    pitches = _numbers(stored.pitches, "<f4", count, 0, HIGH_HZ)
    _require(bool(((pitches == 0) | (pitches >= np.float32(LOW_HZ))).all()), "a pitch is out of range")
    _require(1 <= stored.scale <= 2 * _LARGEST and math.frexp(stored.scale)[0] == 0.5, "its scale is wrong")
    return Library(
        sample_rate=stored.sample_rate,
        channels=stored.channels,
        offsets=np.cumsum(lengths) - lengths,
        lengths=lengths,
        starts=starts,
        pitches=pitches,
        rms=_numbers(stored.rms, "<f4", count, 0, _LARGEST),
        peaks=_numbers(stored.peaks, "<f4", count, 0, _LARGEST),
        brightness=_numbers(stored.brightness, "<f4", count, 0, stored.sample_rate / 2),
        attacks=attacks,
        onsets=onsets,
        audio=_samples(stored, pause) if audio else np.empty((stored.channels, 0), np.float32),
    )


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise InvalidLibrary(otherwise)


def _array(data: bytes, dtype: str, count: int) -> NDArray[Any]:
    _require(len(data) == count * np.dtype(dtype).itemsize, "its arrays are not equally long")
    return np.frombuffer(data, dtype)


def _numbers(data: bytes, dtype: str, count: int, low: float, high: float) -> NDArray[Any]:
    """Numbers from ``low`` to ``high``, in the machine's own byte order."""
    values = _array(data, dtype, count)
    # NaN is neither.
    _require(bool(((values >= low) & (values <= values.dtype.type(high))).all()), "a number is out of range")
    return values.astype(values.dtype.newbyteorder("="))


def _scale(audio: Samples) -> float:
    """1, or the least power of two of which 24 bits hold all samples.

    Full scale itself, and the next number, are clipped by one step instead: otherwise rounding could make of what has
    a scale of 2 what has one of 1.
    """
    peak = float(max(audio.max(), -audio.min()))
    scale = 1.0
    if peak > 1 + 2**-23:
        while round(peak / scale * 2**23) >= 2**23:
            scale *= 2
    return scale


def _flac(audio: Samples, rate: int, scale: float, pause: Callable[[], object]) -> bytes:
    # What FLAC calls the rate is of no use to us, and it cannot say all of them.
    encoder = Encoder(
        AudioFormat.FLAC,
        sample_rate=rate if is_supported_rate(rate) else 48_000,
        channels=len(audio),
        frames=audio.shape[1],
    )
    coded = []
    for first in range(0, audio.shape[1], _PIECE):
        coded.append(encoder.encode(audio[:, first : first + _PIECE] / np.float32(scale)))
        pause()
    return b"".join([*coded, encoder.finish()])


def _samples(stored: grains_pb2.GrainLibrary, pause: Callable[[], object]) -> Samples:
    coded = stored.audio
    _require(stored.frames <= len(coded) * _MOST_FRAMES_PER_BYTE, "its audio is incomplete")
    audio = np.empty((stored.channels, stored.frames), np.float32)
    filled = 0
    try:
        for number, piece in enumerate(_decoded(coded)):
            end = filled + piece.shape[1]
            _require(len(piece) == stored.channels and end <= stored.frames, "its audio is not what it should be")
            np.multiply(piece, stored.scale * 2.0**-31, out=audio[:, filled:end], casting="same_kind")
            filled = end
            if number % _FRAMES_AT_ONCE == 0:
                pause()
    except av.error.FFmpegError as error:
        raise InvalidLibrary("its audio is damaged") from error
    _require(filled == stored.frames, "its audio is incomplete")
    return audio


def _decoded(data: bytes) -> Iterator[NDArray[np.int32]]:
    """Samples ``[channels, n]`` of 24 bits in the upper part of 32."""
    _require(data.startswith(_FLAC), "its audio is not what it should be")
    options = {"codec_whitelist": "flac", "protocol_whitelist": "none"}
    with av.open(io.BytesIO(data), "r", format="flac", container_options=options) as container:
        stream = container.streams.audio[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
        # A demuxer that is still iterating would outlive its container.
        with closing(cast(Generator[AudioFrame, None, None], container.decode(stream))) as frames:
            for frame in frames:
                _require(frame.format.name == "s32", "its audio has not 24 bits")
                shape = (frame.samples, frame.layout.nb_channels)
                plane: Any = frame.planes[0]
                yield np.frombuffer(plane, np.int32, shape[0] * shape[1]).reshape(shape).T
