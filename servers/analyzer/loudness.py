"""Loudness after ITU-R BS.1770-4, EBU R 128 and EBU Tech 3341 and 3342, and dynamics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from servers.analyzer.dynamics import DynamicsMeter
from servers.analyzer.pieces import Samples, sliding_sums
from servers.analyzer.unknown import Unknown
from servers.media.loudness import (
    HOPS_PER_BLOCK,
    GatedLoudness,
    PowerHistogram,
    Powers,
    WeightedPowers,
    hop_frames,
    lufs,
)
from servers.media.truepeak import TruePeakMeter

REPLAY_GAIN_LUFS = -18.0
"""The loudness that ReplayGain 2.0 aims at."""
MIN_RANGE_SECONDS = 6
"""What is shorter has no range."""
_PARTS = 10  # of a hop: the highest loudness is looked for every 10 ms
_HOPS_PER_WINDOW = 30  # 3 s
_RANGE_BINS_PER_LU = 100
_RANGE_GATE = -20.0
_RANGE_SHARES = (0.10, 0.95)


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many gating blocks (0.4 s, every 0.1 s) fell in each twentieth of a LU.

    Attributes:
        first_bin: its lower edge is ``-70 + first_bin / 20`` LUFS.
        counts: of each bin from there on; neither the first nor the last is 0.
    """

    first_bin: int
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Loudness:
    """Loudness in LUFS, ranges and gains in dB; None where it is too short for that. As the proto message."""

    integrated_lufs: float
    momentary_max_lufs: float
    short_term_max_lufs: float | None
    range_lu: float | None
    true_peak_db: float
    track_gain_db: float
    crest_db: float
    dynamic_range_db: float | None
    histogram: Histogram


class LoudnessFeature:
    """Loudness and dynamics of one stream. The result does not depend on how it is cut into arrays.

    Mono counts as one channel, as in BS.1770: it is 3 LU less loud than the same on two.

    * Integrated: gated as in BS.1770-4 (0.4 s every 0.1 s, -70 LUFS, -10 LU); what follows the last whole 0.1 s does
      not count. The relative gate is rounded down to 0.05 LU.
    * Highest momentary (0.4 s) and short-term (3 s) loudness: every 10 ms, so that none is missed by more than 0.06 dB.
    * Range: Tech 3342, of 3 s every 0.1 s, from 6 s on, so that there are two that have nothing in common. Values are
      counted in bins of 0.01 LU and the gate is rounded down to one: so is the range exact to 0.01 LU.
    * True peak: at 8 times the rate. Crest: over the RMS of all samples of all channels.

    Args:
        sample_rate: in Hz, from 1,000.
        channels: 1 or 2.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._hop = hop_frames(sample_rate)
        self._range_frames = MIN_RANGE_SECONDS * sample_rate
        self._frames = 0
        self._weighted = WeightedPowers(sample_rate, channels, _PARTS)
        self._parts = np.zeros(0)  # the last of them
        self._gated = GatedLoudness()
        self._windows = PowerHistogram(_RANGE_BINS_PER_LU)
        self._momentary = self._short_term = 0.0  # the highest powers
        self._peak = TruePeakMeter(channels)
        self._dynamics = DynamicsMeter(sample_rate, channels)

    def process(self, samples: Samples) -> None:
        """Measure float32 ``[channels, n]``."""
        self._frames += samples.shape[1]
        self._peak.process(samples)
        self._dynamics.process(samples)
        new = self._weighted.process(samples).ravel()
        if not len(new):
            return
        self._parts = np.concatenate([self._parts, new])
        hops = sliding_sums(self._parts, _PARTS)
        blocks = _means(hops, HOPS_PER_BLOCK, len(new))
        windows = _means(hops, _HOPS_PER_WINDOW, len(new))
        self._parts = self._parts[-_HOPS_PER_WINDOW * _PARTS + 1 :]
        self._momentary = max(self._momentary, float(blocks.max(initial=0.0)))
        self._short_term = max(self._short_term, float(windows.max(initial=0.0)))
        # The last one ends with a hop.
        self._gated.add_all(blocks[::-1][::_PARTS][::-1])
        self._windows.add_all(windows[::-1][::_PARTS][::-1])

    def finish(self) -> Loudness | Unknown:
        """The result. Call once, last."""
        if self._frames < HOPS_PER_BLOCK * self._hop:
            return Unknown("TOO_SHORT", "It is shorter than 0.4 s, the shortest that has a loudness.")
        integrated = self._gated.lufs
        if math.isnan(integrated):
            return Unknown("SILENT", "Nothing in it is louder than -70 LUFS.")
        self._dynamics.finish()
        peak = self._peak.finish()
        long = self._frames >= _HOPS_PER_WINDOW * self._hop
        return Loudness(
            integrated_lufs=integrated,
            momentary_max_lufs=lufs(self._momentary),
            short_term_max_lufs=lufs(self._short_term) if long else None,
            range_lu=self._range() if self._frames >= self._range_frames else None,
            true_peak_db=peak,
            track_gain_db=REPLAY_GAIN_LUFS - integrated,
            crest_db=peak - 10 * math.log10(self._dynamics.power),
            dynamic_range_db=self._dynamics.range_db,
            histogram=self._histogram(),
        )

    def _range(self) -> float | None:
        """Loudness range in LU; None where no 3 s are above the gate."""
        counts = self._windows.counts
        if not counts.any():
            return None
        heard = np.cumsum(counts[self._windows.first_above(_RANGE_GATE) :])
        # The nearest rank, as the code of Tech 3342 has it.
        low, high = (int(np.searchsorted(heard, round(share * (heard[-1] - 1)), "right")) for share in _RANGE_SHARES)
        return (high - low) / _RANGE_BINS_PER_LU

    def _histogram(self) -> Histogram:
        counts = self._gated.counts
        filled = np.flatnonzero(counts)
        first, last = int(filled[0]), int(filled[-1])
        return Histogram(first, tuple(int(count) for count in counts[first : last + 1]))


def _means(hops: Powers, count: int, new: int) -> Powers:
    """Means of ``count`` successive hops, those that end in the last ``new`` parts."""
    return sliding_sums(hops[-new - (count - 1) * _PARTS :], count, _PARTS) / count
