"""Gated loudness after ITU-R BS.1770-4, of a stream of any length, in bounded memory."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.signal import sosfilt

Samples = NDArray[np.float32]
Powers = NDArray[np.float64]

HOPS_PER_BLOCK = 4
"""A gating block is 400 ms, and blocks overlap by 75 %."""
GATE_LUFS = -70.0
"""What is not louder is silence."""
BINS_PER_LU = 20
_RELATIVE_GATE = -10.0
_MAX_LU = 200  # above the gate, which is 130 LUFS
_MIN_SHELF_RATE = 3600
_CACHED = 8192  # frames that are filtered at once: as many as stay in the cache


def hop_frames(sample_rate: int) -> int:
    """Frames in 100 ms, to the nearest."""
    return (sample_rate + 5) // 10


def lufs(power: float) -> float:
    """Loudness of a mean square of K-weighted samples, summed over channels; -infinity for none."""
    return -0.691 + 10 * math.log10(power) if power > 0 else -math.inf


def k_weighting(sample_rate: int) -> NDArray[np.float64]:
    """The K-weighting filter as second-order sections ``[2, 6]``: a shelf for the head, and a high-pass.

    At 48 kHz these are the coefficients of BS.1770-4, tables 1 and 2; at other rates, the same analogue filters through
    the bilinear transform (parameters after B. De Man, "Evaluation of implementations of the EBU R128 loudness
    measurement", AES 2018). It bends the shelf at low rates, by up to 0.25 dB at 8 kHz. Below 3.6 kHz the shelf is left
    out: it would lie above all that there is.
    """
    k, q = math.tan(math.pi * 1681.974450955533 / sample_rate), 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    middle = high**0.4996667741545416
    a0 = 1 + k / q + k * k
    shelf = [high + middle * k / q + k * k, 2 * (k * k - high), high - middle * k / q + k * k]
    shelf += [a0, 2 * (k * k - 1), 1 - k / q + k * k]
    sections = [[value / a0 for value in shelf]] if sample_rate >= _MIN_SHELF_RATE else [[1.0, 0.0, 0.0, 1.0, 0.0, 0.0]]
    q = 0.5003270373238773
    k, standard = (math.tan(math.pi * 38.13547087602444 / rate) for rate in (sample_rate, 48_000))
    a0 = 1 + k / q + k * k
    # What passes has the gain that it has at 48 kHz, which is 1.005.
    gain = (1 + standard / q + standard * standard) / a0
    sections.append([gain, -2 * gain, gain, 1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0])
    return np.array(sections)


class WeightedPowers:
    """K-weighted power of a stream, hop of 100 ms by hop. It does not depend on how the stream is cut into arrays.

    Args:
        sample_rate: in Hz.
        channels: 1 (centre) or 2 (left and right): all weigh the same.
        parts: how many parts of a hop (as equal as frames allow) are told apart.
    """

    def __init__(self, sample_rate: int, channels: int, parts: int = 1) -> None:
        self._filter = k_weighting(sample_rate)
        self._state = np.zeros((len(self._filter), channels, 2))
        self._hop = hop_frames(sample_rate)
        self._edges = np.arange(parts) * self._hop // parts
        self._rest = np.zeros((channels, 0))

    def process(self, samples: Samples) -> Powers:
        """Measure float32 ``[channels, n]``.

        Returns:
            Sums of squares of the K-weighted samples over the frames of a hop and all channels, float64
            ``[hops, parts]``, of the hops completed, divided by the frames of the hop.
        """
        parts = [self._of(samples[:, at : at + _CACHED]) for at in range(0, samples.shape[1], _CACHED)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self._edges)))

    def _of(self, samples: Samples) -> Powers:
        weighted, self._state = sosfilt(self._filter, samples.astype(np.float64), zi=self._state)
        if self._rest.shape[1]:
            weighted = np.concatenate([self._rest, weighted], axis=1)
        hops = weighted.shape[1] // self._hop
        end = hops * self._hop
        self._rest = weighted[:, end:].copy()
        edges = (np.arange(hops)[:, None] * self._hop + self._edges).ravel()
        if not hops:
            return np.zeros((0, len(self._edges)))
        sums = np.add.reduceat(np.square(weighted[:, :end]), edges, axis=1)
        powers: Powers = sums.sum(axis=0).reshape(hops, -1) / self._hop
        return powers


class PowerHistogram:
    """Powers, counted and summed in bins of equal width in LU, from ``GATE_LUFS`` up: memory does not grow.

    Args:
        bins_per_lu: how fine.

    Attributes:
        counts: of each bin, int64.
        powers: sum of the powers in each bin, float64.
    """

    def __init__(self, bins_per_lu: int = BINS_PER_LU) -> None:
        self._per_lu = bins_per_lu
        self.counts = np.zeros(_MAX_LU * bins_per_lu, np.int64)
        self.powers = np.zeros(_MAX_LU * bins_per_lu)

    def add(self, power: float) -> None:
        """Add one power; one that is not above the gate does not count."""
        if (loudness := lufs(power)) > GATE_LUFS:
            place = self._place(loudness)
            self.counts[place] += 1
            self.powers[place] += power

    def add_all(self, powers: Powers) -> None:
        """Add powers, float64 ``[n]``, as one after the other."""
        with np.errstate(divide="ignore"):
            loudness = -0.691 + 10 * np.log10(powers)
        heard = loudness > GATE_LUFS
        places = np.minimum((loudness[heard] - GATE_LUFS) * self._per_lu, len(self.counts) - 1).astype(np.int64)
        # In order, so that sums do not depend on how many come at once.
        np.add.at(self.counts, places, 1)
        np.add.at(self.powers, places, powers[heard])

    def first_above(self, gate: float) -> int:
        """First bin that passes a gate, in LU relative to the mean of all; the gate is rounded down to a bin.

        Raises:
            ZeroDivisionError: there is nothing in it.
        """
        mean = float(self.powers.sum()) / int(self.counts.sum())
        return max(0, self._place(lufs(mean) + gate))

    def _place(self, loudness: float) -> int:
        return min(int((loudness - GATE_LUFS) * self._per_lu), len(self.counts) - 1)


class GatedLoudness(PowerHistogram):
    """Mean loudness of gating blocks, those gated out that are too quiet.

    The mean is exact, but for the relative gate, which is rounded down to 0.05 LU.
    """

    @property
    def lufs(self) -> float:
        """Loudness of all blocks so far; NaN if there is none above the absolute gate."""
        if not self.counts.any():
            return math.nan
        first = self.first_above(_RELATIVE_GATE)
        return lufs(float(self.powers[first:].sum()) / int(self.counts[first:].sum()))


class LoudnessMeter:
    """Integrated loudness of one stream. The result does not depend on how it is cut into arrays.

    Args:
        sample_rate: in Hz.
        channels: 1 (centre) or 2 (left and right): all weigh the same.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._powers = WeightedPowers(sample_rate, channels)
        self._last: list[float] = []  # of the last hops
        self._gated = GatedLoudness()

    def process(self, samples: Samples) -> list[float]:
        """Measure float32 ``[channels, n]``.

        Returns:
            For each 100 ms completed, the loudness from the start to its end, in LUFS; NaN while there is none.
        """
        return [self._add(float(power)) for power in self._powers.process(samples)[:, 0]]

    @property
    def lufs(self) -> float:
        """Integrated loudness so far; NaN if nothing was above the absolute gate for 400 ms."""
        return self._gated.lufs

    def _add(self, power: float) -> float:
        self._last = [*self._last, power][-HOPS_PER_BLOCK:]
        if len(self._last) == HOPS_PER_BLOCK:
            self._gated.add(sum(self._last) / HOPS_PER_BLOCK)
        return self._gated.lufs
