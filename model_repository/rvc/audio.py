"""What happens to audio before anything else: 16 kHz, mono."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.signal
from numpy.typing import NDArray

RATE = 16_000

Audio = NDArray[np.float32]


def limit_peak(audio: Audio) -> Audio:
    """``audio``, quieter if its peak is above 0.95."""
    peak = float(np.abs(audio).max(initial=0)) / 0.95
    return audio / np.float32(peak) if peak > 1 else audio


def highpass(audio: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """``audio`` (..., n) at 16 kHz without what is below 48 Hz, phases kept: order 5, forward and backward."""
    b, a = scipy.signal.butter(5, 48, btype="high", fs=RATE)
    filtered: NDArray[np.float64] = np.ascontiguousarray(scipy.signal.filtfilt(b, a, audio))
    return filtered
