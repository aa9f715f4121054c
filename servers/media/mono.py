"""One channel of two, so that nothing that is heard is lost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

_OPPOSITE = 1e-4  # power of the mean over that of the channels, -40 dB
_FADE_SECONDS = 0.01


class Mono:
    """The mean of the channels; where the right one is the left one turned round, which leaves nothing, the left one.

    It is chosen for each array, and faded from one to the other in 10 ms: feed arrays of a length that does not depend
    on how the stream came. Digital silence leaves things as they are.

    Args:
        sample_rate: in Hz.
        channels: 1 or 2.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._is_mono = channels == 1
        self._fade = max(1, round(_FADE_SECONDS * sample_rate))
        self._share: float | None = None  # of the left channel, 0.5 or 1, once something was heard

    def process(self, samples: Samples) -> Samples:
        """Take in float32 ``[channels, n]``; returns float32 ``[n]``."""
        if self._is_mono:
            only: Samples = samples[0]
            return only
        mean: Samples = samples.mean(axis=0)
        power = float(np.square(samples).mean())
        if not power:
            return mean
        is_opposite = float(np.square(mean).mean()) < _OPPOSITE * power
        last, self._share = self._share, 1.0 if is_opposite else 0.5
        mono: Samples = mean if self._share == 0.5 else samples[0].copy()
        if last is not None and last != self._share:
            ramp = np.linspace(last, self._share, self._fade, endpoint=False, dtype=np.float32)[: len(mono)]
            left, right = samples[:, : len(ramp)]
            mono[: len(ramp)] = ramp * left + (1 - ramp) * right
        return mono
