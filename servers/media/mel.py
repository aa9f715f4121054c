"""The mel scale, after M. Slaney, Auditory Toolbox, 1998: linear below 1 kHz, logarithmic above."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LINEAR_HZ = 200 / 3  # a mel, below
_BREAK_HZ = 1_000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ
_LOG_STEP = np.log(6.4) / 27  # a mel, above


def mels(hertz: Floats) -> Floats:
    """Frequencies in mel."""
    above = _BREAK_MEL + np.log(np.maximum(hertz, _BREAK_HZ) / _BREAK_HZ) / _LOG_STEP
    return np.where(hertz < _BREAK_HZ, hertz / _LINEAR_HZ, above)


def hertz(mel: Floats) -> Floats:
    """Frequencies in Hz."""
    above = _BREAK_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _BREAK_MEL) - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _LINEAR_HZ, above)


def edges(bands: int, highest: float) -> Floats:
    """Edges and centres in Hz ``[bands + 2]`` of triangular bands as wide in mel from 0 to ``highest`` Hz."""
    return hertz(np.linspace(0.0, mels(np.array([highest]))[0], bands + 2))


def basis(sample_rate: int, frame: int, bands: int) -> NDArray[np.float32]:
    """Weights of the powers of a frame's spectrum in each band, of equal area: float32 ``[bands, frame // 2 + 1]``.

    As ``librosa.filters.mel`` has it.
    """
    centres = edges(bands, sample_rate / 2)
    bins = np.fft.rfftfreq(frame, 1 / sample_rate)
    widths = np.diff(centres)[:, None]
    ramps = centres[:, None] - bins
    weights = np.maximum(0, np.minimum(-ramps[:-2] / widths[:-1], ramps[2:] / widths[1:]))
    weights *= (2 / (centres[2:] - centres[:-2]))[:, None]
    rounded: NDArray[np.float32] = weights.astype(np.float32)
    return rounded
