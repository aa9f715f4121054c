"""The default model: 512 statistics of timbre, rhythm and harmony, each as unusual as it is among many recordings."""

from __future__ import annotations

from importlib import resources

import numpy as np

from servers.analyzer import harmony, rhythm, timbre
from servers.analyzer.logspectrum import Samples, Values
from servers.analyzer.version import EMBEDDINGS

MODEL = EMBEDDINGS
DIMENSIONS = timbre.SIZE + rhythm.SIZE + harmony.SIZE
CONSTANTS = "standard.npz"

_FARTHEST = 5.0
"""Standard deviations: what lies farther out says no more."""
_WEIGHTS = np.repeat([1.0, 1.0, 2.0], [timbre.SIZE, rhythm.SIZE, harmony.SIZE])
"""Harmony tells recordings of one style apart, and little that happens to a recording changes it."""


def describe(power: Samples, pitch: Samples) -> Values:
    """The statistics of a window of a second or more.

    Args:
        power: float32 ``[frames, BINS]``, not silent.
        pitch: float32 ``[frames, PITCH_BINS]`` of the same time.

    Returns:
        float64 ``[512]``, finite.
    """
    return np.concatenate([timbre.describe(power), rhythm.describe(power), harmony.describe(pitch)])


def embed(power: Samples, pitch: Samples) -> Samples:
    """The embedding of a window as ``describe`` takes it, float32 ``[512]`` of norm 1."""
    vector = np.clip((describe(power, pitch) - _MEAN) / _DEVIATION, -_FARTHEST, _FARTHEST) * _WEIGHTS
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def _constants() -> tuple[Values, Values]:
    """Mean and deviation of each statistic among recordings, as tests/bench/analysis/standardise.py found them."""
    with resources.files("servers.analyzer").joinpath(CONSTANTS).open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        return arrays["mean"].astype(np.float64), arrays["deviation"].astype(np.float64)


_MEAN, _DEVIATION = _constants()
