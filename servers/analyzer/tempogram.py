"""How likely each tempo is in each stretch of a recording.

The evidence for a tempo is a weighted sum of the autocorrelations of onset strength, whole and in three bands, at
multiples and fractions of its period, and a polynomial of its logarithm. The weights are those of a conditional logit
model, whose choices are all tempi and "no beat", fitted by ``tests.bench.analysis.fit_tempo`` to 1,800 random rhythms:
drums, bands, clicks, strums, melodies, talk, rubato.
"""

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

_WEIGHTS = (  # lag in beats; weights of the whole, below 200 Hz, to 2 kHz, above
    (1 / 6, -1.53, -1.22, -1.00, -1.15),
    (1 / 4, -0.39, -1.13, -0.56, -0.72),
    (1 / 3, 0.31, -1.08, -0.22, -0.64),
    (3 / 8, -0.01, -1.20, -0.85, -0.41),
    (1 / 2, -0.37, -0.23, -0.91, 0.23),
    (2 / 3, -0.52, -1.79, -0.59, -0.95),
    (3 / 4, -0.01, -0.91, -0.17, 0.16),
    (7 / 8, -1.18, 0.05, -0.78, -0.90),
    (1, -0.04, -0.79, 0.69, -0.37),
    (9 / 8, -1.07, 0.63, -0.10, -0.75),
    (5 / 4, 0.12, -0.10, 0.12, 0.24),
    (4 / 3, -0.69, -1.43, -0.57, -1.26),
    (3 / 2, 0.24, -0.99, 0.35, -0.53),
    (5 / 3, 0.07, -0.35, -0.21, -0.60),
    (2, 1.82, -0.23, 0.68, -0.56),
    (5 / 2, 0.33, -0.46, 0.24, -0.05),
    (3, 2.25, 2.43, 2.68, 1.10),
    (7 / 2, -0.31, -1.29, -0.04, -0.46),
    (4, 2.73, 3.38, 2.93, 1.25),
)
RATIOS = tuple(ratio for ratio, *_ in _WEIGHTS)
_PRIOR_COEFFICIENTS = (-8.69, 2.55, -3.07, -0.71, 0.39)


def signals(envelope: Envelope) -> Floats:
    """What is periodic: strength and bands without what is slow, ``[4, frames]``."""
    return np.stack([_periodic(row.astype(np.float64)) for row in (envelope.strength, *envelope.bands.T)])


def _periodic(row: Floats) -> Floats:
    smooth = ndimage.gaussian_filter1d(row, _SMOOTH, mode="constant")
    above: Floats = np.maximum(smooth - ndimage.uniform_filter1d(smooth, _MEAN, mode="nearest"), 0)
    return np.sqrt(above)


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
