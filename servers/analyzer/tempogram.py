"""How likely each tempo is in each stretch of a recording."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from servers.analyzer.envelope import FRAMES_PER_SECOND, Envelope

Floats = NDArray[np.float64]

WINDOW = 512  # frames, 11.9 s
STEP = 128  # frames, 3.0 s
GRID = np.exp(np.arange(np.log(36.0), np.log(264.0), 0.01))  # beats a minute, each 1 % above the last
LAGS = int(np.ceil(4 * 60 / GRID[0] * FRAMES_PER_SECOND)) + 2

_SMOOTH = 1.0  # frames
_MEAN = 43  # frames
_CHUNK = 256  # windows

_WEIGHTS = (
    (1 / 6, -1.88, -0.63, -1.15, -1.67),
    (1 / 4, -0.15, -1.30, -0.48, -1.02),
    (1 / 3, 0.09, -0.58, -0.25, -1.04),
    (3 / 8, 0.39, -0.10, -0.22, -0.58),
    (1 / 2, 0.16, -0.24, -0.44, -0.31),
    (2 / 3, -0.41, -1.03, -0.38, -0.46),
    (3 / 4, -0.42, -0.92, -0.67, -0.01),
    (7 / 8, -1.43, 0.83, -0.81, -0.58),
    (1, 1.14, -1.47, 0.43, -0.42),
    (9 / 8, -1.21, 1.25, -0.45, -0.22),
    (5 / 4, -0.31, -0.94, -0.51, 0.40),
    (4 / 3, -0.24, -1.51, 0.03, 0.06),
    (3 / 2, 0.49, -1.71, 0.44, -0.90),
    (5 / 3, 0.01, -1.34, 0.20, -0.66),
    (2, 1.15, 0.20, 0.14, 0.92),
    (5 / 2, 0.89, -0.29, 0.03, -0.28),
    (3, 2.53, 2.83, 1.86, -0.88),
    (7 / 2, 0.49, -0.71, -0.17, -1.00),
    (4, 2.29, 3.35, 2.24, 0.67),
)
_PRIOR_COEFFICIENTS = (-8.75, 2.97, 3.57, -0.82, -4.01)


def signals(envelope: Envelope) -> Floats:
    """What is periodic: strength and bands without what is slow, ``[4, frames]``."""
    rows = np.column_stack([envelope.strength, envelope.bands]).T.astype(np.float64)
    smooth = ndimage.gaussian_filter1d(rows, _SMOOTH, axis=1, mode="constant")
    above = np.maximum(smooth - ndimage.uniform_filter1d(smooth, _MEAN, axis=1, mode="nearest"), 0)
    roots: Floats = np.sqrt(above)
    return roots


def starts(frames: int) -> NDArray[np.int64]:
    """Where windows begin."""
    last = max(0, frames - WINDOW)
    begins: NDArray[np.int64] = np.unique(np.append(np.arange(0, last, STEP), last))
    return begins


def autocorrelations(rows: Floats, begins: NDArray[np.int64]) -> Floats:
    """Of each window of each row, 1 at lag 0, ``[windows, rows, LAGS]``; 0 where a window is too short to tell."""
    length = min(WINDOW, rows.shape[1])
    windows = np.stack([rows[:, begin : begin + length] for begin in begins])
    windows = windows - windows.mean(axis=2, keepdims=True)
    size = fft.next_fast_len(length + LAGS)
    spectra = fft.rfft(windows, size, axis=2)
    lags = np.arange(LAGS)
    overlap = np.maximum(length - lags, 1)
    values = fft.irfft(spectra.real**2 + spectra.imag**2, size, axis=2)[:, :, :LAGS] / overlap
    values[:, :, overlap < 0.3 * length] = 0
    energy = values[:, :, :1]
    result: Floats = np.where(energy > 1e-9, values / np.maximum(energy, 1e-9), 0)
    return result


def evidence(rows: Floats, begins: NDArray[np.int64]) -> Floats:
    """Logarithm of how likely each tempo of ``GRID`` is, over there being none, ``[windows, tempi]``."""
    parts = [begins[first : first + _CHUNK] for first in range(0, len(begins), _CHUNK)]
    return np.concatenate([autocorrelations(rows, part).reshape(len(part), -1) @ _MATRIX + _PRIOR for part in parts])


def _matrix() -> Floats:
    """What an autocorrelation at each row and lag counts for each tempo, ``[4 * LAGS, tempi]``."""
    matrix = np.zeros((4, LAGS, len(GRID)))
    tempi = np.arange(len(GRID))
    for ratio, *weights in _WEIGHTS:
        lags = ratio * 60 / GRID * FRAMES_PER_SECOND
        low = lags.astype(int)
        for row, weight in enumerate(weights):
            matrix[row, low, tempi] += weight * (1 - lags + low)
            matrix[row, low + 1, tempi] += weight * (lags - low)
    return matrix.reshape(-1, len(GRID))


_MATRIX = _matrix()
_PRIOR = np.polyval(_PRIOR_COEFFICIENTS[::-1], np.log(GRID / 110))
