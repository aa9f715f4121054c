"""The pitch of many short pieces of sound at once.

The normalised square difference of P. McLeod and G. Wyvill, "A smarter way to find pitch", ICMC 2005, of every frame
of every piece, by FFT in batches; then one pitch for each piece: the one that most of it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from servers.grains.covering import coverings

Samples = NDArray[np.float32]
Counts = NDArray[np.int64]

LOW_HZ = 32.703196  # C1
HIGH_HZ = 64 * LOW_HZ  # C7
_MARGIN = 2 ** (0.5 / 12)  # what is found up to half a semitone outside is moved to the end
_FRAME_SECONDS = 0.13
_BAND_HZ = (4000.0, 5000.0)  # from full to nothing
_PERIODS = 2.0  # that a frame must have
_FIRST_SHARE = 0.9  # of the highest maximum: the first one as high is the period
_CLARITY = 0.5  # of _MANY_PERIODS
_CLARITY_OF_FEW = 0.8  # of _FEW_PERIODS: chance makes noise repeat itself once or twice
_MANY_PERIODS, _FEW_PERIODS = 8.0, 4.0
_LEAST_KEPT = 0.01  # of the energy is in the band
_LEAST_SHARE = 1e-3  # of the energy, in the two ends that a lag compares
_SILENT = 10 ** (-70 / 20)
_FINE = 1000  # parts of a cent
_APART = 20_000 * _FINE  # from one segment to the next, in these
_UNIT = 1 << 20


def pitches(segments: Samples | Sequence[Samples], rate: int, pause: Callable[[], object] = lambda: None) -> Samples:
    """The pitch of each segment.

    Args:
        segments: float32 ``[n, length]``, or n arrays ``[length]`` of any lengths: mono, finite.
        rate: in Hz.
        pause: called again and again; what it raises ends the work.

    Returns:
        float32 ``[n]``, Hz from C1 (32.7) to C7 (2093); 0: none, or shorter than two of its periods, or nothing is
        above -70 dBFS. A segment with several has the one that it has longest, by level. Does not depend on the other
        segments.
    """
    result = np.zeros(len(segments), np.float32)
    for which, covering in coverings(segments, round(_FRAME_SECONDS * rate)):
        hz = np.zeros(len(covering.owners), np.float32)
        weights = np.zeros(len(covering.owners), np.float32)
        for batch, frames, lengths in covering.batches():
            hz[batch], weights[batch] = _pitches_of_frames(frames, lengths, rate)
            pause()
        result[which] = _of_segments(len(which), covering.owners, hz, weights)
    return result


@dataclass(frozen=True, slots=True)
class _Grid:
    """Sizes of the transforms: of ``size`` samples, of which ``band`` bins are kept; ``lags`` are looked at.

    Attributes:
        rate: of the lags, in Hz.
    """

    size: int
    band: Samples
    reduced: int
    rate: float
    lags: int


@lru_cache(maxsize=64)
def _grid(length: int, rate: int) -> _Grid:
    longest = _MARGIN * min(1 / LOW_HZ, length / rate / _PERIODS)
    size = fft.next_fast_len(round(length + longest * rate) + 8, real=True)
    hz = np.arange(size // 2 + 1) * (rate / size)
    full, nothing = _BAND_HZ
    band = np.clip((nothing - hz[hz < nothing]) / (nothing - full), 0, 1).astype(np.float32)
    reduced = fft.next_fast_len(round(size * 4.4 * nothing / rate), real=True)
    fine = rate * reduced / size
    return _Grid(size, band, reduced, fine, round(fine * longest) + 3)


def _pitches_of_frames(frames: Samples, lengths: Counts, rate: int) -> tuple[Samples, Samples]:
    """Pitch of each frame in Hz, 0: none, and its weight, the root of its energy."""
    grid = _grid(frames.shape[1], rate)
    means = frames.sum(axis=1) / np.maximum(1, lengths).astype(np.float32)
    frames = (frames - means[:, None]) * (np.arange(frames.shape[1]) < lengths[:, None])
    energies = np.einsum("ij,ij->i", frames, frames)
    difference, kept = _normalised(frames, lengths, grid)
    lags, clarity = _periods(difference)
    hz = grid.rate / np.maximum(lags, 1e-9)
    periods = hz * (lengths / rate)
    few = np.clip((_MANY_PERIODS - periods) / (_MANY_PERIODS - _FEW_PERIODS), 0, 1)
    voiced = (clarity >= _CLARITY + (_CLARITY_OF_FEW - _CLARITY) * few) & (periods >= _PERIODS) & (lags > 0)
    voiced &= (hz >= LOW_HZ / _MARGIN) & (hz <= HIGH_HZ * _MARGIN)
    voiced &= (energies > _SILENT**2 * lengths) & (kept >= _LEAST_KEPT * energies)
    return np.where(voiced, np.clip(hz, LOW_HZ, HIGH_HZ), 0).astype(np.float32), np.sqrt(energies)


def _normalised(frames: Samples, lengths: Counts, grid: _Grid) -> tuple[Samples, NDArray[np.float64]]:
    """McLeod's normalised square difference of the band for lags ``[frames, lags]``; and the energies of the band."""
    spectra = fft.rfft(frames, grid.size, axis=1)[:, : len(grid.band)] * grid.band
    powers = spectra.real**2 + spectra.imag**2
    products = fft.irfft(powers, grid.reduced, axis=1)[:, : grid.lags]
    filtered = fft.irfft(spectra, grid.reduced, axis=1)
    sums = np.zeros((len(frames), grid.reduced + 1))
    np.cumsum(filtered**2, axis=1, out=sums[:, 1:])
    total = sums[:, -1:]
    ends = np.minimum(grid.reduced, np.ceil(lengths * (grid.reduced / grid.size))).astype(np.int64)
    first = np.take_along_axis(sums, np.maximum(0, ends[:, None] - np.arange(grid.lags)), axis=1)
    last = total - sums[:, : grid.lags]
    difference = 2 * products / np.maximum(first + last, _LEAST_SHARE * total + 1e-30)
    return difference.astype(np.float32), total[:, 0] * (grid.reduced / grid.size)


def _periods(difference: Samples) -> tuple[Samples, Samples]:
    """The first maximum that is nearly the highest: where, between lags, and how high; 0: there is none."""
    middle = difference[:, 1:-1]
    after_dip = np.logical_or.accumulate(difference < 0, axis=1)[:, 1:-1]
    maxima = (middle > difference[:, :-2]) & (middle >= difference[:, 2:]) & after_dip
    # Of parabolas: between lags, short periods would be lower than their multiples.
    bend = difference[:, :-2] - 2 * middle + difference[:, 2:]
    rise = (difference[:, 2:] - difference[:, :-2]) ** 2 / np.where(maxima, -8 * bend, 1)
    heights = np.where(maxima, middle + rise, 0)
    highest = heights.max(axis=1, initial=0)
    found = np.argmax(maxima & (heights >= _FIRST_SHARE * highest[:, None]), axis=1) + 1
    lags = _refined(difference, found.astype(np.float64))
    clarity = np.take_along_axis(heights, found[:, None] - 1, axis=1)[:, 0]
    return np.where(highest > 0, lags, 0).astype(np.float32), clarity


def _refined(difference: Samples, lags: NDArray[np.float64]) -> NDArray[np.float64]:
    """Periods between the lags, by parabolas through maxima at one, two, four and eight periods."""
    last = difference.shape[1] - 2
    best = lags
    for multiple in (1, 2, 4, 8):
        guess = np.rint(best * multiple).astype(np.int64)
        around = guess[:, None] + np.arange(-3, 4)
        values = np.take_along_axis(difference, np.clip(around, 0, last + 1), axis=1)
        peak = 1 + np.argmax(values[:, 1:-1], axis=1)
        left, top, right = (np.take_along_axis(values, (peak + k)[:, None], axis=1)[:, 0] for k in (-1, 0, 1))
        bend = left - 2 * top + right
        usable = (guess + 3 <= last) & (bend < 0) & (top >= left) & (top >= right) & (top > 0)
        shift = np.where(usable, (left - right) / np.where(usable, 2 * bend, 1), 0)
        best = np.where(usable, (guess - 3 + peak + shift) / multiple, best)
    return best


def _of_segments(count: int, owners: Counts, hz: Samples, weights: Samples) -> Samples:
    """Of each segment the pitch that most of it has, to a quarter tone; 0 if less than half of it has one.

    Weights and cents are integers, so that sums over all segments are exact and each segment is on its own.
    """
    loudest = np.zeros(count, np.float32)
    np.maximum.at(loudest, owners, weights)
    shares = np.rint(weights / np.maximum(loudest, 1e-30)[owners] * _UNIT).astype(np.int64)
    voiced = np.flatnonzero(hz)
    cents = np.zeros(len(hz), np.int64)
    cents[voiced] = np.rint(1200 * _FINE * np.log2(hz[voiced] / LOW_HZ))
    keys = owners * _APART + cents
    voiced = voiced[np.argsort(keys[voiced], kind="stable")]
    keys, owner, share = keys[voiced], owners[voiced], shares[voiced]
    sums = np.concatenate([[0], np.cumsum(share)])
    products = np.concatenate([[0], np.cumsum(share * cents[voiced])])
    low, high = np.searchsorted(keys, keys - 50 * _FINE, "left"), np.searchsorted(keys, keys + 50 * _FINE, "right")
    near = sums[high] - sums[low]
    result = np.zeros(count, np.float32)
    order = np.lexsort((-near, owner))
    kept, first = np.unique(owner[order], return_index=True)
    best = order[first]
    middle = (products[high] - products[low])[best] / np.maximum(1, near[best])
    enough = 2 * np.bincount(owner, share, count)[kept] >= np.bincount(owners, shares, count)[kept]
    result[kept[enough]] = (LOW_HZ * 2 ** (middle / (1200 * _FINE)))[enough]
    return result
