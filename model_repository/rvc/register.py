"""The register of a singer or a voice, and how to move one to the other. NumPy only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FEWEST = 50  # voiced frames, half a second, below which a range says nothing


def pitch_range(f0: NDArray[np.float64]) -> tuple[float, float, float] | None:
    """Low, median and high: 5th, 50th and 95th percentile in Hz of the voiced frames of ``f0``.

    The outer twentieths are where estimators err by octaves. None if fewer than 50 frames are voiced.

    Args:
        f0: Hz, 0 (or NaN) where unvoiced, any shape.
    """
    voiced = f0[f0 > 0]
    if len(voiced) < FEWEST:
        return None
    low, median, high = np.percentile(voiced, (5, 50, 95))
    return float(low), float(median), float(high)


def octaves(singer_median: float, voice_median: float) -> int:
    """Semitones, whole octaves, that bring the singer's median pitch nearest to the voice's.

    Only whole octaves keep the song's key, so that the converted vocals fit the rest of the music.

    Args:
        singer_median, voice_median: Hz; 0 if unknown, which gives 0.
    """
    if singer_median <= 0 or voice_median <= 0:
        return 0
    return 12 * round(math.log2(voice_median / singer_median))
