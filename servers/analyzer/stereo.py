"""How the two channels of a recording differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from servers.analyzer.pieces import Pieces, Samples, sliding_sums
from servers.analyzer.unknown import Unknown
from servers.media.loudness import hop_frames

MAX_BALANCE_DB = 120.0
"""What a balance beyond is given as, and that of a channel that is digital silence."""
_HOPS_PER_WINDOW = 30  # 3 s
_GATE = 10 ** (-70 / 20)

Sums = NDArray[np.float64]  # [..., 3]: squares of the left channel, of the right one, and their product


@dataclass(frozen=True, slots=True)
class Stereo:
    """How two channels differ.

    Attributes:
        correlation: sum of products over the root of the product of the sums of squares, -1 (opposite) to 1 (the same);
            a constant offset counts, as in correlation meters. 0 where one channel is digital silence.
        width: power of the difference over that of both: ``(L - R)² / (2 (L² + R²))``, 0 (mono) to 1 (opposite); one
            half where they have nothing in common.
        balance_db: power of the right channel over that of the left one, in dB, -120 to 120.
        min_correlation: lowest of any 3 s (every 0.1 s) in which the RMS of both channels is above -70 dBFS; the
            correlation of the whole where there are none.
    """

    correlation: float
    width: float
    balance_db: float
    min_correlation: float


class StereoFeature:
    """Width and phase of one stream of two channels. The result does not depend on how it is cut into arrays.

    Args:
        sample_rate: in Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        self._hop = hop_frames(sample_rate)
        self._pieces = Pieces(self._hop, 2)
        self._heard = False
        self._hops: Sums = np.zeros((0, 3))  # the last of them
        self._sums: Sums = np.zeros(3)
        self._lowest = math.inf

    def process(self, samples: Samples) -> None:
        """Measure float32 ``[2, n]``."""
        self._add(self._pieces.process(samples))

    def finish(self) -> Stereo | Unknown:
        """The result. Call once, last."""
        self._add(self._pieces.finish()[:, None], whole=False)
        if not self._heard:
            return Unknown("SILENT", "Nothing in it is above -70 dBFS.")
        left, right, product = (float(value) for value in self._sums)
        correlation = float(_correlations(self._sums[None])[0])
        return Stereo(
            correlation=correlation,
            width=min(max((left + right - 2 * product) / (2 * (left + right)), 0.0), 1.0),
            balance_db=min(max(_decibels(right) - _decibels(left), -MAX_BALANCE_DB), MAX_BALANCE_DB),
            min_correlation=correlation if math.isinf(self._lowest) else self._lowest,
        )

    def _add(self, pieces: Samples, *, whole: bool = True) -> None:
        """Add hops, float32 ``[2, hops, n]``; those that are not whole are in no window."""
        if not pieces.size:
            return
        left, right = pieces
        self._heard = self._heard or bool(pieces.max() > _GATE or pieces.min() < -_GATE)
        new = np.stack([np.square(left).sum(axis=1), np.square(right).sum(axis=1), (left * right).sum(axis=1)], axis=1)
        for hop in new.astype(np.float64):
            self._sums += hop
        if not whole:
            return
        self._hops = np.concatenate([self._hops, new])
        windows = sliding_sums(self._hops, _HOPS_PER_WINDOW)
        self._hops = self._hops[-_HOPS_PER_WINDOW + 1 :]
        heard = windows[:, :2].min(axis=1, initial=math.inf) > _GATE**2 * _HOPS_PER_WINDOW * self._hop
        self._lowest = min(self._lowest, float(_correlations(windows[heard]).min(initial=math.inf)))


def _correlations(sums: Sums) -> NDArray[np.float64]:
    """Of ``[n, 3]``; 0 where a channel has no power."""
    both = np.sqrt(sums[:, 0] * sums[:, 1])
    correlations: NDArray[np.float64] = np.divide(sums[:, 2], both, out=np.zeros(len(sums)), where=both > 0)
    return np.clip(correlations, -1.0, 1.0)


def _decibels(power: float) -> float:
    return 10 * math.log10(power) if power > 0 else -1e4
