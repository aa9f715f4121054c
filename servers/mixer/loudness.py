"""Gated loudness after ITU-R BS.1770-4, of a stream of any length, in bounded memory."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.signal import sosfilt

Samples = NDArray[np.float32]

HOPS_PER_BLOCK = 4
"""A gating block is 400 ms, and blocks overlap by 75 %."""
_ABSOLUTE_GATE = -70.0
_RELATIVE_GATE = -10.0
_BINS_PER_LU = 20
_BINS = 200 * _BINS_PER_LU  # up to 130 LUFS


def hop_frames(sample_rate: int) -> int:
    """Frames in 100 ms, to the nearest."""
    return (sample_rate + 5) // 10


def k_weighting(sample_rate: int) -> NDArray[np.float64]:
    """The K-weighting filter as second-order sections ``[2, 6]``: a shelf for the head, and a high-pass.

    At 48 kHz these are the coefficients of BS.1770-4, tables 1 and 2; at other rates, the same analogue filters through
    the bilinear transform (parameters after B. De Man, "Evaluation of implementations of the EBU R128 loudness
    measurement", AES 2018).
    """
    k, q = math.tan(math.pi * 1681.974450955533 / sample_rate), 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    middle = high**0.4996667741545416
    a0 = 1 + k / q + k * k
    shelf = [high + middle * k / q + k * k, 2 * (k * k - high), high - middle * k / q + k * k]
    shelf += [a0, 2 * (k * k - 1), 1 - k / q + k * k]
    sections = [[value / a0 for value in shelf]]
    k, q = math.tan(math.pi * 38.13547087602444 / sample_rate), 0.5003270373238773
    a0 = 1 + k / q + k * k
    sections.append([1.0, -2.0, 1.0, 1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0])
    return np.array(sections)


class GatedLoudness:
    """Mean loudness of gating blocks, those gated out that are too quiet.

    Powers are summed in bins of 0.05 LU, so memory does not grow: the mean is exact, the relative gate is rounded down
    to a bin.
    """

    def __init__(self) -> None:
        self._powers = np.zeros(_BINS)
        self._counts = np.zeros(_BINS)

    def add(self, power: float) -> None:
        """Add a block: the mean square of its K-weighted samples, summed over channels."""
        loudness = _lufs(power)
        if loudness > _ABSOLUTE_GATE:
            place = min(int((loudness - _ABSOLUTE_GATE) * _BINS_PER_LU), _BINS - 1)
            self._powers[place] += power
            self._counts[place] += 1

    @property
    def lufs(self) -> float:
        """Loudness of all blocks so far; NaN if there is none above the absolute gate."""
        count = self._counts.sum()
        if not count:
            return math.nan
        gate = _lufs(self._powers.sum() / count) + _RELATIVE_GATE
        first = max(0, int((gate - _ABSOLUTE_GATE) * _BINS_PER_LU))
        return _lufs(self._powers[first:].sum() / self._counts[first:].sum())


class LoudnessMeter:
    """Integrated loudness of one stream. The result does not depend on how it is cut into arrays.

    Args:
        sample_rate: in Hz.
        channels: 1 (centre) or 2 (left and right): all weigh the same.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._filter = k_weighting(sample_rate)
        self._state = np.zeros((len(self._filter), channels, 2))
        self._hop = hop_frames(sample_rate)
        self._rest = np.zeros((channels, 0))
        self._powers: list[float] = []  # of the last hops
        self._gated = GatedLoudness()

    def process(self, samples: Samples) -> list[float]:
        """Measure float32 ``[channels, n]``.

        Returns:
            For each 100 ms completed, the loudness from the start to its end, in LUFS; NaN while there is none.
        """
        weighted, self._state = sosfilt(self._filter, samples.astype(np.float64), zi=self._state)
        weighted = np.concatenate([self._rest, weighted], axis=1)
        hops = weighted.shape[1] // self._hop
        self._rest = weighted[:, hops * self._hop :].copy()
        return [self._add(weighted[:, at * self._hop : (at + 1) * self._hop]) for at in range(hops)]

    @property
    def lufs(self) -> float:
        """Integrated loudness so far; NaN if nothing was above the absolute gate for 400 ms."""
        return self._gated.lufs

    def _add(self, hop: NDArray[np.float64]) -> float:
        power = float(sum(np.square(channel).sum() for channel in hop)) / self._hop
        self._powers = [*self._powers, power][-HOPS_PER_BLOCK:]
        if len(self._powers) == HOPS_PER_BLOCK:
            self._gated.add(sum(self._powers) / HOPS_PER_BLOCK)
        return self._gated.lufs


def _lufs(power: float) -> float:
    return -0.691 + 10 * math.log10(power) if power > 0 else -math.inf
