"""Spectra on a logarithmic frequency axis, where a transposition is a shift."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Samples = NDArray[np.float32]
Values = NDArray[np.float64]

RATE = 22_050
FFT_LENGTH, HOP = 2048, 512
FRAMES_PER_SECOND = RATE / HOP
PITCH_FFT_LENGTH, PITCH_HOP = 8192, 2048  # semitones are apart from 180 Hz on
PITCH_FRAMES_PER_SECOND = RATE / PITCH_HOP

BINS_PER_OCTAVE = 24
BINS = 8 * BINS_PER_OCTAVE
PITCH_BINS = 6 * BINS_PER_OCTAVE
_LOWEST_HZ = 41.203  # E1, the lowest string of a bass; the highest bin is at 10.2 kHz
_LOWEST_PITCH_HZ = 65.406  # C2; the highest bin is at 4.1 kHz


def _filters(length: int, lowest: float, bins: int) -> sparse.csr_matrix:
    """Triangles between neighbouring centres, but none narrower than the FFT can see; each sums to 1."""
    width = RATE / length
    hertz = np.arange(length // 2 + 1) * width
    centres = lowest * 2.0 ** (np.arange(bins) / BINS_PER_OCTAVE)
    step = 2.0 ** (1 / BINS_PER_OCTAVE)
    below = np.maximum(centres - centres / step, width)
    above = np.maximum(centres * step - centres, width)
    distance = hertz[:, None] - centres
    weights = np.maximum(0.0, 1 - np.where(distance < 0, -distance / below, distance / above))
    return sparse.csr_matrix((weights / weights.sum(axis=0)).T.astype(np.float32))


_FILTERS = _filters(FFT_LENGTH, _LOWEST_HZ, BINS)
_PITCH_FILTERS = _filters(PITCH_FFT_LENGTH, _LOWEST_PITCH_HZ, PITCH_BINS)


def log_spectra(power: Samples) -> Samples:
    """Float32 ``[frames, BINS]`` of POWER22, float32 ``[frames, 1025]``."""
    return _filtered(_FILTERS, power)


def pitch_spectra(power: Samples) -> Samples:
    """Float32 ``[frames, PITCH_BINS]`` of float32 ``[frames, 4097]``."""
    return _filtered(_PITCH_FILTERS, power)


def _filtered(filters: sparse.csr_matrix, power: Samples) -> Samples:
    spectra: Samples = np.ascontiguousarray((filters @ power.T).T)
    return spectra


def triangles(centres: Values, positions: Values) -> Values:
    """Averages over triangles between neighbours of ``centres`` (a geometric series), ``[positions, centres]``."""
    step = np.log(centres[1] / centres[0])
    distance = np.abs(np.log(np.maximum(positions, 1e-9)[:, None] / centres)) / step
    weights = np.maximum(0.0, 1 - distance)
    averages: Values = weights / np.maximum(weights.sum(axis=0), 1e-9)
    return averages
