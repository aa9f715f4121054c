"""How the level of a grain changes while it is played."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from servers.grains.settings import Shape

Samples = NDArray[np.float32]
Times = NDArray[np.float64]

FADE_SECONDS = 0.002
_UP, _DOWN, _HELD, _SUSTAINED = 0.1, 0.3, 0.7, 0.7  # ADSR: ends of attack, decay and sustain; its level


def envelope(shape: Shape, frames: int, rate: float) -> Samples:
    """The factor of each frame of a grain that is played for so many frames: float32 ``[frames]``, 0 to 1.

    At frame ``i``, with ``t = i / frames``:

    * EXPONENTIAL: ``10 ** (-3 t)``, which is -60 dB at the end;
    * LINEAR: ``1 - t``;
    * HANN: ``sin(π t) ** 2``;
    * ADSR: from 0 at ``t = 0`` to 1 at 0.1, to 0.7 at 0.3, held until 0.7, to 0 at 1, by straight lines;
    * NONE: 1, but for the last ``f`` frames, 2 ms or all there are: ``(frames - i) / f``.

    Args:
        frames: what is heard of the grain, not what could have been: a short grain fades, too.
        rate: in Hz.
    """
    if shape is Shape.NONE:
        fade = min(frames, max(1, round(FADE_SECONDS * rate)))
        return np.minimum(1.0, np.arange(frames, 0, -1) / max(fade, 1)).astype(np.float32)
    return _SHAPES[shape](np.arange(frames) / max(frames, 1)).astype(np.float32)


def _exponential(t: Times) -> Times:
    return 10.0 ** (-3.0 * t)


def _linear(t: Times) -> Times:
    return 1.0 - t


def _hann(t: Times) -> Times:
    swell: Times = np.sin(np.pi * t)
    return swell**2


def _adsr(t: Times) -> Times:
    return np.interp(t, [0.0, _UP, _DOWN, _HELD, 1.0], [0.0, 1.0, _SUSTAINED, _SUSTAINED, 0.0])


_SHAPES: dict[Shape, Callable[[Times], Times]] = {
    Shape.EXPONENTIAL: _exponential,
    Shape.LINEAR: _linear,
    Shape.HANN: _hann,
    Shape.ADSR: _adsr,
}
