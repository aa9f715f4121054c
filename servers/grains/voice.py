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

QUALITY = "HQ"
"""Of grains of another rate or pitch. They are short and many: VHQ takes three times as long."""
CENTS = 1200
"""In an octave. Grains are shifted by whole cents, so that one can be played for more than one note."""
MOST_OCTAVES = 2
_TAIL = 64  # frames of the slower side that a resampler looks at


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """A grain as it is played.

    Attributes:
        samples: float32 ``[1 or 2, n]``, one channel if the library or the output has no more.
        peak: their largest magnitude.
    """

    samples: Samples
    peak: float


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
        return Voice(samples, float(np.abs(samples).max(initial=0.0)))

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
