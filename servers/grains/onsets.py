"""Where sounds begin in a stem, found while it streams, to the sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from servers.media.frames import Framer, power_spectra

Samples = NDArray[np.float32]
Positions = NDArray[np.int64]
Values = NDArray[np.float64]

HOPS_PER_SECOND = 100
REFRACTORY_SECONDS = 0.03
_FRAME_SECONDS = 0.0348
_LOW_HZ, _HIGH_HZ, _BANDS_PER_OCTAVE = 30.0, 16_000.0, 12
_FLOOR_DB = -80.0  # what is below is no sound
_BELOW_RECENT_DB = 50.0  # nor what is so far below the loudest band of late
_RECENT_DB_PER_SECOND = 20.0  # by which that is forgotten
_LAG = 2  # frames over which a rise is measured
_HIGHEST_OF = 3  # neighbouring bands: vibrato is no rise
_DELTA_DB, _TIMES_MEAN = 0.6, 1.5
_MEAN_BEFORE, _MEAN_AFTER = 10, 7  # frames
_HIGHEST_WITHIN = 3  # frames on both sides

BACK_SECONDS, LATE_SECONDS = 0.041, 0.02
"""How far before an onset that was found, or after it, its first sample may be."""
_NOTHING = 1e-5  # of the largest magnitude
_TINY = 1e-20
_BATCH_SAMPLES = 1 << 20


class Onsets:
    """Finds onsets in a mono stream, to some 20 ms; ``refined`` knows better.

    The flux of S. Boeck and G. Widmer, "Maximum filter vibrato suppression for onset detection", DAFx 2013, in dB, and
    the peaks of it that are above what is usual around them. Feed arrays whose lengths do not depend on how the stream
    came.

    Args:
        rate: in Hz.

    Attributes:
        until: all onsets before this sample are known.
    """

    def __init__(self, rate: int) -> None:
        self._hop = round(rate / HOPS_PER_SECOND)
        length = 2 * fft.next_fast_len(round(_FRAME_SECONDS * rate / 2), real=True)
        window = np.hanning(length + 1)[:-1]
        self._window = (window * 2 / window.sum()).astype(np.float32)
        self._framer = Framer(length, self._hop)
        self._edges = _band_edges(rate, length)
        self._last = np.full((_LAG, len(self._edges) - 1), _FLOOR_DB, np.float32)
        self._recent_db = _FLOOR_DB
        self._flux = np.zeros(_MEAN_BEFORE, np.float32)  # from frame `_first` on, some before what is not judged yet
        self._first = -_MEAN_BEFORE
        self._latest = -REFRACTORY_SECONDS * HOPS_PER_SECOND
        self.until = 0

    def process(self, mono: Samples) -> Positions:
        """Take in float32 ``[n]``; returns the onsets that are known with it, in samples, ascending."""
        return self._picked(self._flux_of(self._framer.process(mono)))

    def finish(self) -> Positions:
        """The last onsets. Call once, last."""
        rest = self._flux_of(self._framer.finish())
        return self._picked(np.pad(rest, (0, _MEAN_AFTER)))

    def _flux_of(self, frames: Samples) -> Samples:
        """By how many dB the bands of each frame rose, on average over the bands."""
        if not len(frames):
            return np.zeros(0, np.float32)
        power = np.add.reduceat(power_spectra(frames, self._window), self._edges, axis=1)[:, :-1]
        decibels = 10 * np.log10(power + np.float32(_TINY))
        floor = self._floors(decibels.max(axis=1))[:, None]
        before = np.concatenate([self._last, ndimage.maximum_filter1d(decibels, _HIGHEST_OF, axis=1)])
        self._last = before[-_LAG:]
        rises = np.maximum(decibels, floor) - np.maximum(before[:-_LAG], floor)
        flux: Samples = np.maximum(rises, 0).mean(axis=1)
        return flux

    def _floors(self, loudest: Samples) -> Samples:
        """What counts as silence in each frame, in dB."""
        fall = np.float32(_RECENT_DB_PER_SECOND / HOPS_PER_SECOND) * np.arange(1, len(loudest) + 1, dtype=np.float32)
        recent = np.maximum(np.maximum.accumulate(loudest + fall), self._recent_db) - fall
        self._recent_db = float(recent[-1])
        floors: Samples = np.maximum(recent - np.float32(_BELOW_RECENT_DB), np.float32(_FLOOR_DB))
        return floors

    def _picked(self, flux: Samples) -> Positions:
        self._flux = np.concatenate([self._flux, flux])
        count = len(self._flux) - _MEAN_BEFORE - _MEAN_AFTER
        if count <= 0:
            return np.zeros(0, np.int64)
        around = np.lib.stride_tricks.sliding_window_view(self._flux, _MEAN_BEFORE + 1 + _MEAN_AFTER)
        near = around[:, _MEAN_BEFORE - _HIGHEST_WITHIN : _MEAN_BEFORE + _HIGHEST_WITHIN + 1]
        here = around[:, _MEAN_BEFORE]
        usual = around.mean(axis=1)
        peaks = np.flatnonzero((here >= near.max(axis=1)) & (here >= _TIMES_MEAN * usual + _DELTA_DB))
        frames = self._first + _MEAN_BEFORE + peaks
        found: list[int] = []
        for frame in frames.tolist():
            if frame - self._latest >= REFRACTORY_SECONDS * HOPS_PER_SECOND:
                found.append(frame)
                self._latest = frame
        self._flux = self._flux[count:]
        self._first += count
        self.until = (self._first + _MEAN_BEFORE) * self._hop
        return np.array(found, np.int64) * self._hop


def _band_edges(rate: int, length: int) -> Positions:
    """First bins of bands, and of what is above the last one."""
    octaves = np.log2(min(_HIGH_HZ, 0.475 * rate) / _LOW_HZ)
    hertz = _LOW_HZ * 2 ** (np.arange(octaves * _BANDS_PER_OCTAVE + 1) / _BANDS_PER_OCTAVE)
    bins = np.unique(np.round(hertz * length / rate).astype(np.int64))
    edges: Positions = bins[bins > 0]
    return edges


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Where to look for an onset, in seconds; places are the less likely the farther they are from ``likely``."""

    before: float
    after: float
    likely: float
    width: float
    price: float


_ROUGH = _Stretch(0.03, 0.018, -0.005, 0.01, 0.1)
_FINE = _Stretch(0.01, 0.001, 0.0, 0.005, 0.02)


def refined(mono: Samples, onsets: Positions, rate: int) -> tuple[Positions, Values]:
    """First samples of sounds, whose onsets are known to about 20 ms.

    Where a stretch falls into a quiet and a loud part most likely, if samples and their differences were Gaussian noise
    of one power before and another after: N. Maeda, "A method for reading and checking phase times in auto-processing
    system of seismic wave data", Zisin 38, 1985; first in a longer stretch, then in a short one, as the weak beginning
    of a sound counts for nothing beside its peak.

    Args:
        mono: float32 ``[n]``.
        onsets: int64 ``[m]``, 0 to n.
        rate: in Hz.

    Returns:
        int64 ``[m]``, 0 to n - 1, none more than ``BACK_SECONDS`` before what was given, or ``LATE_SECONDS`` after; and
        how clear each is: logarithm of the likelihood ratio, for each sample, of samples that get louder there.
    """
    margin = round((_ROUGH.before + _FINE.before + _ROUGH.after + _FINE.after) * rate)
    padded = np.pad(mono, margin)
    both = (padded, np.diff(padded, prepend=padded[:1]))
    at_once = max(1, _BATCH_SAMPLES // margin)
    places, clarity = onsets + margin, np.zeros(len(onsets))
    for first in range(0, len(onsets), at_once):
        part = slice(first, first + at_once)
        rough, clarity[part] = _change(both, places[part], _ROUGH, rate)
        places[part], _ = _change(both, rough, _FINE, rate)
    return np.clip(places - margin, 0, len(mono) - 1), clarity


def _change(signals: tuple[Samples, ...], places: Positions, stretch: _Stretch, rate: int) -> tuple[Positions, Values]:
    """First samples of what is louder than before, near ``places``, and how clear it is."""
    before, after = max(2, round(stretch.before * rate)), max(2, round(stretch.after * rate))
    steps = np.arange(-before, after)
    rows = places[:, None] + steps
    gains = np.stack([_gains(signal[rows].astype(np.float64)) for signal in signals])
    away = (steps[1:] / rate - stretch.likely) / stretch.width
    best = np.argmax(gains.sum(axis=0) - stretch.price * away**2, axis=1)
    return places + steps[1:][best], gains[0, np.arange(len(places)), best]


def _gains(stretches: Values) -> Values:
    """How much likelier, for each sample, it is that ``[m, n]`` get louder at sample 1 to n - 1 than not."""
    least = (_NOTHING * np.abs(stretches).max(axis=1, keepdims=True)) ** 2 + _TINY
    energy = np.cumsum(stretches**2, axis=1)
    count = stretches.shape[1]
    share = np.arange(1, count) / count
    quiet = energy[:, :-1] / (share * count) + least
    loud = (energy[:, -1:] - energy[:, :-1]) / ((1 - share) * count) + least
    even = energy[:, -1:] / count + least
    gains = np.log(even) - share * np.log(quiet) - (1 - share) * np.log(loud)
    return np.where(loud > quiet, gains, 0)
