"""How a recording moves, said so that a small change of tempo changes little of it."""

from __future__ import annotations

import numpy as np
from scipy import fft

from servers.analyzer.logspectrum import BINS, FRAMES_PER_SECOND, Samples, Values, triangles
from servers.analyzer.timbre import SILENT_SHARE

_BANDS = 8
_TRANSFORM = 1024
_LAGS, _SCALES, _MODULATIONS = 40, 12, 12
_FLOOR = 0.03  # of a band's mean power: pauses and faint noise look alike

SIZE = _MODULATIONS * _BANDS // 2 + 3 * (_LAGS + _SCALES)

_LAG_WEIGHTS = triangles(np.geomspace(0.1, 4.0, _LAGS), np.arange(_TRANSFORM // 2) / FRAMES_PER_SECOND)
_RATE_WEIGHTS = triangles(
    np.geomspace(0.3, 16.0, _MODULATIONS), np.arange(_TRANSFORM // 2 + 1) * FRAMES_PER_SECOND / _TRANSFORM
)


def describe(power: Samples) -> Values:
    """Modulation spectra of bands, and autocorrelations of low, high and all onsets, on logarithmic axes.

    There a change of tempo is a shift, which the magnitudes of a Fourier transform along the axis ignore: the scale
    transform (A. Holzapfel and Y. Stylianou, "Scale transform in rhythmic similarity of music", 2011).

    Args:
        power: float32 ``[frames, BINS]``, 3 to 512 frames, not silent.

    Returns:
        float64 ``[SIZE]``, finite.
    """
    bands = power.astype(np.float64).reshape(len(power), _BANDS, BINS // _BANDS).sum(axis=2)
    mean = bands.mean(axis=0)
    levels = np.log(bands / (mean + SILENT_SHARE * mean.max()) + _FLOOR)
    onsets = np.maximum(levels[2:] - levels[:-2], 0)
    low, high = onsets[:, : _BANDS // 2].sum(axis=1), onsets[:, _BANDS // 2 :].sum(axis=1)
    lags = _autocorrelations(np.column_stack([low, high, low + high]))
    scales = np.abs(fft.rfft(lags * _hann(_LAGS), 64, axis=0))[1 : _SCALES + 1]
    return np.concatenate([_modulations(levels).ravel(), lags.T.ravel(), scales.T.ravel()])


def _hann(length: int) -> Values:
    return np.hanning(length + 2)[1:-1, None]


def _modulations(levels: Values) -> Values:
    """Log power of each octave pair's levels by rate of change, relative to all rates, ``[rates, pairs]``."""
    spectra = np.abs(fft.rfft((levels - levels.mean(axis=0)) * _hann(len(levels)), _TRANSFORM, axis=0)) ** 2
    rates = _RATE_WEIGHTS.T @ spectra
    shares = rates / (rates.sum(axis=0) + 1e-3 * len(levels))
    logs: Values = np.log(shares.reshape(_MODULATIONS, -1, 2).mean(axis=2) + 1e-3)
    return logs


def _autocorrelations(onsets: Values) -> Values:
    """By lag, of each column, 1 at lag 0, ``[lags, columns]``."""
    spectra = np.abs(fft.rfft(onsets - onsets.mean(axis=0), _TRANSFORM, axis=0)) ** 2
    products = fft.irfft(spectra, axis=0)[: _TRANSFORM // 2]
    correlations: Values = _LAG_WEIGHTS.T @ (products / (products[0] + 1e-3 * len(onsets)))
    return correlations
