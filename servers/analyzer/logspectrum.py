"""Spectra on a logarithmic frequency axis, where a transposition is a shift."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Samples = NDArray[np.float32]
Values = NDArray[np.float64]

RATE = 22_050
FFT_LENGTH = 2048
HOP = 512
FRAMES_PER_SECOND = RATE / HOP

BINS_PER_OCTAVE = 24
OCTAVES = 8
BINS = BINS_PER_OCTAVE * OCTAVES
LOWEST_HZ = 41.203  # E1, the lowest string of a bass; the highest is 10.2 kHz


def centres() -> Values:
    """Centre frequencies of the bins, in Hz, float64 ``[BINS]``."""
    return LOWEST_HZ * 2.0 ** (np.arange(BINS) / BINS_PER_OCTAVE)


def _filters() -> sparse.csc_matrix:
    """Triangles between neighbouring centres, but never narrower than the FFT can see; each sums to 1. ``[1025, BINS]``."""
    width = RATE / FFT_LENGTH
    hertz = np.arange(FFT_LENGTH // 2 + 1) * width
    middle = centres()
    step = 2.0 ** (1 / BINS_PER_OCTAVE)
    below = np.maximum(middle - middle / step, width)
    above = np.maximum(middle * step - middle, width)
    distance = hertz[:, None] - middle
    weights = np.maximum(0.0, 1 - np.where(distance < 0, -distance / below, distance / above))
    return sparse.csc_matrix((weights / weights.sum(axis=0)).astype(np.float32))


_FILTERS = _filters()


def log_spectra(power: Samples) -> Samples:
    """Power at logarithmically spaced frequencies.

    Args:
        power: POWER22, float32 ``[frames, 1025]``.

    Returns:
        float32 ``[frames, BINS]``.
    """
    spectra: Samples = np.ascontiguousarray((_FILTERS.T @ power.T).T)
    return spectra
