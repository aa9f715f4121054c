"""What one grain sounds like when it is played.

Grains are resampled one by one, when they are played, together with the shift of their pitch: most of a library may
never be heard.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from servers.grains.envelopes import envelope
from servers.grains.library import Library
from servers.grains.settings import Playing
from servers.grains.stretching import frames_needed, stretched

Samples = NDArray[np.float32]
Powers = NDArray[np.float64]

QUALITY = "HQ"
"""Of grains of another rate or pitch. They are short and many: VHQ takes three times as long."""
CENTS = 1200
"""In an octave. Grains are shifted by whole cents, so that one can be played for more than one note."""
MOST_OCTAVES = 2
INAUDIBLE = 1e-6
"""A peak that is not raised to anything."""
POWER_SECONDS = 0.01
_FAINT, _FAINTER = 1e-4, 0.03  # a magnitude, and a share of the grain's peak: what is less is not made louder than they
_TAIL = 64  # frames of the slower side that a resampler looks at


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """A grain as it is played.

    Attributes:
        samples: float32 ``[1 or 2, n]``, one channel if the library or the output has no more.
        peak: their largest magnitude.
        loud: the magnitude that is made as loud as a note: the peak, or more where that is faint, or the envelope left
            next to nothing: noise is not made loud.
        powers: float64, the square of the largest magnitude of each 10 ms, the loudest of which is 1.
    """

    samples: Samples
    peak: float
    loud: float
    powers: Powers

    def overlap(self, spacing: float, count: int) -> float:
        """How many times as loud so many grains like this are together, 1 or more, as their powers add up.

        Args:
            spacing: from one to the next, in units of 10 ms, at least 1.
        """
        together = self.powers.copy()
        for number in range(1, min(count, math.ceil(len(self.powers) / spacing))):
            later = self.powers[int(spacing * number) :]
            together[: len(later)] += later
        return math.sqrt(float(together.max()))


def cents_between(low: float, high: float) -> int:
    """By how many cents to shift from a pitch in Hz to another: at most two octaves up or down; 0 if one is none."""
    if low <= 0 or high <= 0:
        return 0
    return round(CENTS * min(MOST_OCTAVES, max(-MOST_OCTAVES, math.log2(high / low))))


class Voices:
    """Grains as they are played; those used last are kept.

    Args:
        rate, channels: of what comes out.
        room: in bytes, for what is kept beside the one that was used last.

    Attributes:
        frames: the longest there are.
        nbytes: memory of those that are kept.
    """

    def __init__(self, library: Library, playing: Playing, rate: int, channels: int, *, room: int = 1 << 25) -> None:
        self._library, self._playing, self._rate = library, playing, rate
        self._to_mono = channels < library.channels
        self.frames = max(1, round(playing.seconds * rate))
        self._room, self.nbytes = room, 0
        self._voices: OrderedDict[tuple[int, int], Voice] = OrderedDict()

    def voice(self, grain: int, cents: int) -> Voice:
        """A grain from its onset on, shifted by so many cents: at most as long as grains are played."""
        key = grain, cents
        voice = self._voices.get(key)
        if voice is None:
            voice = self._voices[key] = self._made(grain, cents)
            self.nbytes += voice.samples.nbytes
            while self.nbytes > self._room and len(self._voices) > 1:
                self.nbytes -= self._voices.popitem(last=False)[1].samples.nbytes
        else:
            self._voices.move_to_end(key)
        return voice

    def _made(self, grain: int, cents: int) -> Voice:
        playing = self._playing
        needed = frames_needed(self.frames, playing.stretch, self._rate)
        sound = stretched(self._resampled(grain, cents, needed), playing.stretch, self.frames, self._rate)
        samples = sound * envelope(playing.shape, sound.shape[1], self._rate)
        magnitudes = np.abs(samples).max(axis=0)
        peak = float(magnitudes.max(initial=0.0))
        blocks = np.arange(0, len(magnitudes), max(1, round(POWER_SECONDS * self._rate)))
        powers = np.square(np.maximum.reduceat(magnitudes, blocks, dtype=np.float64) / max(peak, INAUDIBLE))
        loud = max(peak, _FAINTER * float(self._library.peaks[grain]), _FAINT)
        return Voice(samples, peak, loud, powers)

    def _resampled(self, grain: int, cents: int, frames: int) -> Samples:
        """The first frames after its onset, or all there are, at the output's rate."""
        library = self._library
        begin = int(library.offsets[grain] + library.onsets[grain])
        end = int(library.offsets[grain] + library.lengths[grain])
        if cents == 0 and library.sample_rate == self._rate:
            return self._mixed(begin, min(end, begin + frames))
        step = 2 ** (cents / CENTS) * library.sample_rate / self._rate
        tail = math.ceil(_TAIL * max(1.0, step))
        sound = self._mixed(begin, min(end, begin + math.ceil(frames * step) + tail))
        resampled: Samples = soxr.resample(np.ascontiguousarray(sound.T), step, 1.0, quality=QUALITY)
        return np.ascontiguousarray(resampled[:frames].T)

    def _mixed(self, begin: int, end: int) -> Samples:
        sound = self._library.audio[:, begin:end]
        return sound.mean(axis=0, keepdims=True) if self._to_mono else sound
