"""One input's strip: the gains that it goes through into the mix."""

from __future__ import annotations

import math

import numpy as np
from contrafact.engine.v1 import mixer_pb2
from numpy.typing import NDArray

from servers.mixer.inputs import Grid, Input
from servers.mixer.matching import LoudnessMatch

Wave = NDArray[np.float64]


class Strip:
    """How one input sounds in the mix.

    Args:
        asked: what of its spec says so.
        source: the input.
        channels: of the mix.
        match: gives it the loudness of another.
    """

    def __init__(
        self, asked: mixer_pb2.MixInput, source: Input, channels: int, match: LoudnessMatch | None = None
    ) -> None:
        self.name, self.match = asked.name, match
        self._source = source
        self._gain = 10 ** (asked.gain_db / 20)
        self._fades = asked.fade_in_frames, asked.fade_out_frames
        self._to_mono = channels < source.placement.channels
        self._sides = side_gains(asked.pan, source.placement.channels) if channels == 2 else None

    def part(self, number: int, grid: Grid) -> Wave | None:
        """What it adds to a chunk, float64 ``[channels, n]``; None: nothing. Ask for each chunk once, in order."""
        factors = self.match.gains(grid.length(number)) if self.match is not None else None
        samples = self._source.chunk(number)
        if samples is None:
            return None
        wave = samples.astype(np.float64)
        if factors is not None:
            wave *= factors
        wave *= self._gain
        self._fade(wave, grid.start(number))
        if self._to_mono:
            wave = wave.mean(axis=0, keepdims=True)
        return wave if self._sides is None else wave * self._sides

    def _fade(self, wave: Wave, start: int) -> None:
        """Fade in and out, in place, where this chunk does."""
        placement, (rise, fall) = self._source.placement, self._fades
        end = start + wave.shape[1]
        if rise and (risen := min(placement.begin + rise, end)) > start:
            wave[:, : risen - start] *= _rising(np.arange(start, risen) - placement.begin, rise)
        if fall and (falls := max(placement.last - fall, start)) < end:
            wave[:, falls - start :] *= _rising(placement.last - 1 - np.arange(falls, end), fall)


def side_gains(pan: float, channels: int) -> Wave | None:
    """Gains of left and right, ``[2, 1]``; None where they are 1 and there is no channel to double.

    Args:
        pan: from -1, left, to 1, right.
        channels: of the input. 1: constant power, 1 in the middle. 2: balance.
    """
    if channels == 2:
        return np.array([[min(1.0, 1.0 - pan)], [min(1.0, 1.0 + pan)]]) if pan else None
    # cos(x) is sin(pi / 2 - x): so written, both are exactly 0 at the far side and 1 in the middle.
    quarters = np.array([[1.0 - pan], [1.0 + pan]])
    gains: Wave = math.sqrt(2) * np.sin(quarters * (math.pi / 4))
    return gains


def _rising(places: NDArray[np.int64], length: int) -> Wave:
    """Gain of the frames at ``places`` of a fade, the sine at the middle of each; 0 before it.

    At the middle, so that fades in and out of the same length are mirrored, and of constant power together.
    """
    rising: Wave = np.sin((np.maximum(places, -0.5) + 0.5) * (math.pi / 2 / length))
    return rising
