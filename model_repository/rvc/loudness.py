"""Loudness of the singer for the voice: RVC's RMS mix, as a stream. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEP = 50  # frames between places where loudness is measured, over a window of twice that
FLOOR = 1e-6  # of the voice's RMS, or silence would be amplified without end
HOP = 160

Audio = NDArray[np.float32]


class LoudnessMatch:
    """Gives converted audio the loudness contour of what was converted. It is up to a second behind.

    RMS is measured every half second over the second around it, and interpolated.

    Args:
        samples: of a frame of converted audio.
        mix: 0 (loudness of the input) .. 1 (unchanged).
    """

    def __init__(self, samples: int, mix: float) -> None:
        if not 0 <= mix <= 1:
            raise ValueError(f"rms_mix_rate is {mix}, must be 0..1")
        self._samples, self._mix = samples, mix
        # Mean squares of frames, of input and output; half a window of nothing is before the stream.
        self._energy = np.zeros((2, STEP), np.float64)
        self._waiting = np.zeros(0, np.float32)

    def push(self, given: Audio, made: Audio, last: bool = False) -> Audio:
        """Take the same frames of the input at 16 kHz and of the output; give what is certain, with ``last`` all.

        Args:
            given: (frames * 160,).
            made: (frames * samples,).
        """
        if self._mix == 1:
            return made
        squares = [
            np.square(a, dtype=np.float64).reshape(-1, n).mean(1) for a, n in ((given, HOP), (made, self._samples))
        ]
        self._energy = np.concatenate([self._energy, np.stack(squares)], axis=1)
        self._waiting = np.concatenate([self._waiting, made])
        ready = (self._energy.shape[1] - 2 * STEP) // STEP  # places whose windows are full, less the first
        if last:
            ready = -(-len(self._waiting) // (STEP * self._samples))
            missing = (ready + 2) * STEP - self._energy.shape[1]
            self._energy = np.pad(self._energy, ((0, 0), (0, max(missing, 0))))
        if ready < 1:
            return made[:0]
        halves = self._energy[:, : (ready + 2) * STEP].reshape(2, ready + 2, STEP).mean(2)
        wanted, own = np.sqrt((halves[:, :-1] + halves[:, 1:]) / 2)  # (ready + 1,) each
        own = np.maximum(own, FLOOR)
        count = STEP * self._samples
        places = np.arange(ready * count) / count
        steps = np.arange(ready + 1)
        gain = np.interp(places, steps, wanted) ** (1 - self._mix) * np.interp(places, steps, own) ** (self._mix - 1)
        part: Audio = self._waiting[: len(gain)]
        self._waiting, self._energy = self._waiting[len(gain) :], self._energy[:, ready * STEP :]
        matched: Audio = (part * gain[: len(part)]).astype(np.float32)
        return matched
