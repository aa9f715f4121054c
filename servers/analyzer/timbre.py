"""What colour a sound has, said so that equalisers, levels and noise change little of it."""

from __future__ import annotations

import numpy as np
from scipy import fft

from servers.analyzer.logspectrum import BINS, Samples, Values

SIZE = 20 + 32 + 16 + 36 + 14
SILENT_SHARE = 1e-6
"""-60 dB below the strongest, nothing is told apart."""

_BANDS = 32
_SHAPE = 20
_CEPSTRA = 9
_FLOOR = 0.03  # of a band's mean power: pauses and faint noise look alike
_LEVELS = np.array([-45.0, -36, -30, -24, -18, -14, -10, -7, -4, -2, 0])


def describe(power: Samples) -> Values:
    """Statistics of the spectrum's shape and of the level over time.

    The mean shape is a cepstrum (a tilt changes only its first values); all else is relative to each band's own mean,
    which no filter changes.

    Args:
        power: float32 ``[frames, BINS]``, at least 2 frames, not silent.

    Returns:
        float64 ``[SIZE]``, finite.
    """
    bands = power.astype(np.float64).reshape(len(power), _BANDS, BINS // _BANDS).sum(axis=2)
    mean = bands.mean(axis=0)
    mean += SILENT_SHARE * mean.max()
    relative = np.log(bands / mean + _FLOOR)
    steps = np.abs(np.diff(relative, axis=0)).mean(axis=0)
    return np.concatenate(
        [
            fft.dct(np.log(mean), norm="ortho")[1 : _SHAPE + 1],
            relative.std(axis=0),
            steps.reshape(-1, 2).mean(axis=1),
            _correlations(fft.dct(relative, axis=1, norm="ortho")[:, :_CEPSTRA]),
            _dynamics(bands.sum(axis=1)),
        ]
    )


def _correlations(cepstra: Values) -> Values:
    """Which parts of the shape move together, ``[36]`` in -1 to 1."""
    centred = cepstra - cepstra.mean(axis=0)
    covariance = centred.T @ centred / len(centred)
    deviation = np.sqrt(np.diag(covariance)) + 0.01
    correlations: Values = (covariance / np.outer(deviation, deviation))[np.triu_indices(_CEPSTRA, 1)]
    return correlations


def _dynamics(level: Values) -> Values:
    """How often the level is how far below loud moments, and how fast it moves, ``[14]``.

    Each frame counts for the two nearest of ``_LEVELS`` by its distance: no rounding error moves it to another.
    """
    decibels = 10 * np.log10(level + SILENT_SHARE * level.max())
    decibels -= np.percentile(decibels, 95)
    corners = np.eye(len(_LEVELS))
    shares = np.array([np.interp(decibels, _LEVELS, corner).mean() for corner in corners])
    steps = np.diff(decibels)
    return np.concatenate(
        [np.sqrt(shares + 0.01), [decibels.std(), np.abs(steps).mean(), np.sqrt(np.mean(np.maximum(steps, 0) ** 2))]]
    )
