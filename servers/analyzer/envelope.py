"""How strongly sounds begin, frame by frame: what onsets, tempo and beats are found in."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from servers.media import mel

Samples = NDArray[np.float32]

SAMPLE_RATE = 22_050
FRAME = 2_048
HOP = 512
FRAMES_PER_SECOND = SAMPLE_RATE / HOP
DELAY = FRAME // (2 * HOP)  # frames by which librosa moves the envelope, for a frame hears half a frame ahead
SILENCE_DB = -70.0  # dBFS

_BANDS = 128
_FLOOR_DB = -100.0
_RANGE_DB = 80.0  # librosa's top_db
_RISES_DB = (1.5, 4.0, 8.0, 14.0, 21.0, 29.0, 38.0, 48.0)  # by which the loudest value may still grow
_HELD = 1_024  # frames, 24 s, whose levels are kept whole
_BAND_RANGE_DB = 60.0
_BEGIN_SHARE = 0.5  # of the strongest: what begins with the recording, or was cut there, is not stronger
_BAND_EDGES_HZ = (0.0, 200.0, 2_000.0, SAMPLE_RATE / 2)
_CHROMA_HZ = (100.0, 2_000.0)
_CHANGE_FRAMES = 8  # 0.19 s: what a chord is compared over


@dataclass(frozen=True, slots=True)
class Envelope:
    """Onset strength of a recording, at 22,050 / 512 = 43.07 frames a second.

    Attributes:
        strength: float32 ``[frames]``: ``librosa.onset.onset_strength``, in dB, but for the second frame: there is what
            begins with the recording, as if silence went before it.
        bands: float32 ``[frames, 3]``: mean rise in dB below 200 Hz, up to 2 kHz and above, moved as ``strength`` is.
        change: float32 ``[frames]``: how far the harmony of the next 0.2 s is from that of the last, 0 to 1.
        peak_db: RMS of the loudest frame, in dBFS.
    """

    strength: Samples
    bands: Samples
    change: Samples
    peak_db: float

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return len(self.strength) / FRAMES_PER_SECOND


class EnvelopeFeature:
    """Collects the envelope of a stream: 32 bytes a frame, 1.4 kB a second, and 0.5 MB.

    librosa clips the spectrum 80 dB below its loudest value, which is known only at the end. So the levels of the first
    24 s of sound are kept until then, and of the frames after them the strength for the clipping that follows from the
    loudest value *so far* and for eight higher ones, to interpolate between: it falls with the clipping.
    """

    def __init__(self) -> None:
        self._basis: Samples = np.ascontiguousarray(mel.basis(SAMPLE_RATE, FRAME, _BANDS).T)
        centres = mel.edges(_BANDS, SAMPLE_RATE / 2)[1:-1]
        self._edges = np.searchsorted(centres, _BAND_EDGES_HZ)
        self._chroma = _chroma_basis()
        self._chromas = np.zeros((2 * _CHANGE_FRAMES, 12), np.float32)
        self._power = 0.0
        self._loudest = np.float32(_FLOOR_DB)
        self._first: Samples | None = None  # levels
        self._last: Samples | None = None
        self._quiet = 0  # frames before the first that is held
        self._held = np.zeros((0, _BANDS), np.float32)
        self._strengths: list[Samples] = []
        self._clipped: list[NDArray[np.float16]] = []
        self._heights: list[Samples] = []
        self._bands: list[NDArray[np.float16]] = []
        self._changes: list[NDArray[np.float16]] = []

    def process(self, powers: Samples) -> None:
        """Take in float32 ``[frames, 1025]``, the squared magnitudes of the frames that follow."""
        if not len(powers):
            return
        self._power = max(self._power, float(powers.sum(axis=1).max()))
        levels: Samples = 10 * np.log10(np.maximum(powers @ self._basis, np.float32(10 ** (_FLOOR_DB / 10))))
        if self._first is None or self._last is None:
            self._first = self._last = levels[:1].copy()
        before = np.concatenate([self._last, levels[:-1]])
        self._last = levels[-1:].copy()
        heights: Samples = np.maximum.accumulate(np.maximum(levels.max(axis=1), self._loudest))
        self._loudest = heights[-1]
        self._hold(before, levels)
        clips = heights[:, None] - np.float32(_RANGE_DB)
        self._heights.append(heights)
        self._strengths.append(_rise(before, levels, clips).mean(axis=1))
        clipped = [_rise(before, levels, clips + np.float32(rise)).mean(axis=1) for rise in _RISES_DB]
        self._clipped.append(np.stack(clipped, axis=1).astype(np.float16))
        rise = _rise(before, levels, heights[:, None] - np.float32(_BAND_RANGE_DB))
        bands = [rise[:, low:high].mean(axis=1) for low, high in pairwise(self._edges)]
        self._bands.append(np.stack(bands, axis=1).astype(np.float16))
        self._change(powers)

    def _hold(self, before: Samples, levels: Samples) -> None:
        """Keep the levels of the frames from the first that is not digital silence on."""
        if not len(self._held):
            sounding = np.flatnonzero(levels.max(axis=1) > _FLOOR_DB)
            first = sounding[0] if len(sounding) else len(levels)
            self._quiet += int(first)
            levels = np.concatenate([before[first : first + 1], levels[first:]])
        self._held = np.concatenate([self._held, levels[: _HELD + 1 - len(self._held)]])

    def _change(self, powers: Samples) -> None:
        chroma = np.sqrt(powers @ self._chroma)
        chromas = np.concatenate([self._chromas, chroma])
        sums = np.cumsum(chromas, axis=0, dtype=np.float64)
        after = sums[2 * _CHANGE_FRAMES :] - sums[_CHANGE_FRAMES:-_CHANGE_FRAMES]
        past = sums[_CHANGE_FRAMES:-_CHANGE_FRAMES] - sums[: -2 * _CHANGE_FRAMES]
        norms = np.linalg.norm(after, axis=1) * np.linalg.norm(past, axis=1)
        alike = (after * past).sum(axis=1) / np.maximum(norms, 1e-12)
        self._changes.append(np.where(norms > 1e-12, 1 - alike, 0).astype(np.float16))
        self._chromas = chromas[len(chroma) :]

    def finish(self) -> Envelope:
        """The envelope of all. Call once, last."""
        if self._first is None:
            empty = np.zeros(0, np.float32)
            return Envelope(empty, np.zeros((0, 3), np.float32), empty, -np.inf)
        bands = np.concatenate(self._bands).astype(np.float32)
        change = np.concatenate(self._changes).astype(np.float32)
        ahead = _CHANGE_FRAMES - DELAY
        change = np.concatenate([change[ahead:], np.zeros(min(ahead, len(change)), np.float32)])
        power = 2 * self._power / FRAME / (0.375 * FRAME)  # Parseval; 0.375: mean square of a Hann window
        strength = _delayed(self._strength())
        strength[1:2] = self._begin(self._first, float(strength.max()))
        return Envelope(strength, _delayed(bands), change, 10 * np.log10(max(power, 1e-20)))

    def _begin(self, first: Samples, strongest: float) -> float:
        """The strength of what begins with the recording, which librosa does not tell."""
        silence = np.full_like(first, self._loudest - np.float32(_BAND_RANGE_DB))
        rise = float(_rise(silence, first, silence).mean())
        return min(rise, _BEGIN_SHARE * strongest) if strongest else rise

    def _strength(self) -> Samples:
        """The strength for the clipping level of the whole."""
        strengths = np.concatenate(self._strengths)
        missing = self._loudest - np.concatenate(self._heights)
        late = np.flatnonzero(missing > 0)
        rises = np.array([0, *_RISES_DB, _RANGE_DB], np.float32)
        columns = np.concatenate(self._clipped)[late]
        columns = np.column_stack([strengths[late], columns, np.zeros(len(late))])
        right = np.searchsorted(rises[:-1], missing[late])
        share = np.minimum((missing[late] - rises[right - 1]) / (rises[right] - rises[right - 1]), 1)
        rows = np.arange(len(late))
        strengths[late] = (1 - share) * columns[rows, right - 1] + share * columns[rows, right]
        held = _rise(self._held[:-1], self._held[1:], self._loudest - np.float32(_RANGE_DB)).mean(axis=1)
        strengths[self._quiet : self._quiet + len(held)] = held
        return strengths


def _rise(before: Samples, after: Samples, floor: Samples | np.float32) -> Samples:
    low = np.maximum(before, floor)
    rise: Samples = np.maximum(after, low)
    rise -= low
    return rise


def _delayed(values: Samples) -> Samples:
    """Moved by ``DELAY`` frames and cut to its length, as librosa does it."""
    return np.concatenate([np.zeros_like(values[:DELAY]), values[: max(0, len(values) - DELAY)]])


def _chroma_basis() -> Samples:
    """Which of 12 pitch classes a bin of a spectrum belongs to, float32 ``[1025, 12]``."""
    hertz = np.fft.rfftfreq(FRAME, 1 / SAMPLE_RATE)
    basis = np.zeros((len(hertz), 12), np.float32)
    bins = np.flatnonzero((hertz >= _CHROMA_HZ[0]) & (hertz <= _CHROMA_HZ[1]))
    basis[bins, np.round(12 * np.log2(hertz[bins] / 440)).astype(int) % 12] = 1
    return basis
