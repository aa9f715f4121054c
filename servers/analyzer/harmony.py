"""Which notes sound with and after which, said so that a transposition does not change it."""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage

from servers.analyzer.logspectrum import BINS_PER_OCTAVE, PITCH_FRAMES_PER_SECOND, Samples, Values, triangles

_TRANSFORM = 256
_RATES = 9
_INTERVALS = 40
_COEFFICIENTS = 7
_TRIPLES = [(1, 1), (1, 2), (1, 3), (2, 2), (1, 4), (2, 3), (1, 5), (2, 4), (3, 3)]

SIZE = (2 * _RATES + 1) * (_COEFFICIENTS - 1) + 4 * len(_TRIPLES) + _INTERVALS

_RATE_WEIGHTS = triangles(
    np.geomspace(0.12, 4.0, _RATES), np.arange(_TRANSFORM // 2) * PITCH_FRAMES_PER_SECOND / _TRANSFORM
)


def describe(pitch: Samples) -> Values:
    """Statistics of pitch classes that ignore the key.

    The Fourier coefficients of a frame's pitch classes turn by one angle when music is transposed, coefficient ``k``
    by ``k`` times as much. Kept is what does not turn: their powers by rate of change, and the products of three whose
    angles cancel, in each moment (chords) and in the mean (scales).

    Args:
        pitch: float32 ``[frames, PITCH_BINS]``, at most 256 frames, not silent.

    Returns:
        float64 ``[SIZE]``, finite.
    """
    peaks = _peaks(pitch.astype(np.float64))
    classes = peaks.reshape(len(peaks), -1, BINS_PER_OCTAVE).sum(axis=1)
    turning = fft.fft(classes, axis=1)[:, :_COEFFICIENTS]
    turning /= np.sqrt(np.mean(np.abs(turning[:, 0]) ** 2)) + 1e-3
    mean = turning.mean(axis=0, keepdims=True)
    return np.concatenate([_rates(turning[:, 1:]), _triples(turning), _triples(mean), _intervals(peaks)])


def _peaks(power: Values) -> Values:
    """How far each bin stands out of its octave, in log power: no smooth filter matters."""
    levels = np.log(power + 1e-5 * power.mean(axis=0).max())
    around = ndimage.uniform_filter1d(levels, BINS_PER_OCTAVE + 1, axis=1, mode="nearest")
    peaks: Values = np.maximum(0, levels - around)
    return peaks


def _rates(turning: Values) -> Values:
    """Log power of each coefficient at rest and by rate of change, both directions of turning apart."""
    mean = turning.mean(axis=0)
    window = np.hanning(len(turning) + 2)[1:-1, None]
    spectra = np.abs(fft.fft((turning - mean) * window, _TRANSFORM, axis=0)) ** 2 / len(turning)
    forward = _RATE_WEIGHTS.T @ spectra[: _TRANSFORM // 2]
    backward = _RATE_WEIGHTS.T @ spectra[-np.arange(_TRANSFORM // 2)]
    logs: Values = np.log(np.concatenate([np.abs(mean) ** 2, forward.ravel(), backward.ravel()]) + 1e-4)
    return logs


def _triples(turning: Values) -> Values:
    """Mean products of three coefficients, relative to their size: real parts, then imaginary ones."""
    products = np.stack([turning[:, j] * turning[:, k] * turning[:, j + k].conj() for j, k in _TRIPLES])
    relative = products.mean(axis=1) / (np.abs(products).mean(axis=1) + 1e-4)
    return np.concatenate([relative.real, relative.imag])


def _intervals(peaks: Values) -> Values:
    """How much of the spectrum recurs 1 to 40 quarter tones higher."""
    spectra = (np.abs(fft.rfft(peaks, 2 * peaks.shape[1], axis=1)) ** 2).mean(axis=0)
    products = fft.irfft(spectra)
    similar: Values = products[1 : _INTERVALS + 1] / (products[0] + 1e-9)
    return similar
