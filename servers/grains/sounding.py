"""How long notes sound, and how loud they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from servers.grains.notes import LEVELS_PER_SECOND, level_edge

Samples = NDArray[np.float32]
Flags = NDArray[np.bool_]

SILENCE = np.float32(10 ** (-70 / 20))
_FALLEN = np.float32(10 ** (-40 / 20))  # of its peak: a note has ended
_RISEN = np.float32(10 ** (12 / 20))  # over what was left: a note has begun
_AGREEING = 3  # levels: 60 ms
END_SECONDS = (_AGREEING + 1) / LEVELS_PER_SECOND
"""How long after the last frame of a note it is known that it has ended, if nothing follows."""
BACK_SECONDS = 0.1
"""How far before the last frame a beginning or an end may be that is found out later."""
MAX_LEVELS = 30_000
"""A note that sounds longer than 10 minutes goes on as another: memory is bounded."""


@dataclass(frozen=True, slots=True, eq=False)
class Sounded:
    """A note that has ended.

    Attributes:
        start: its first frame.
        frames: how many.
        magnitudes: the largest of each 20 ms from its first frame on.
    """

    start: int
    frames: int
    magnitudes: Samples


class Sounding:
    """Tells notes from gaps between them.

    A note begins at an onset; and where, without one, there is 60 ms of sound above -70 dBFS that is by 12 dB louder
    than what was left after the last note: a sound that swells. It ends at the next onset, or with its last sample
    within 40 dB of its peak, and above -70 dBFS, before 60 ms of less.

    Args:
        rate: in Hz.

    Attributes:
        begin: first frame of the note that sounds, or of what has not been judged.
        sounds: whether a note sounds.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._magnitudes = np.zeros(0, np.float32)  # of each 20 ms from `begin` on
        self._lowest = np.float32(0)  # magnitude in the gap, before `begin`
        self.begin, self.sounds = 0, False

    def go_on(self, samples: Samples, first: int, end: int, *, ends: bool) -> list[Sounded]:
        """Goes on to frame ``end``.

        Args:
            samples: magnitudes, from frame ``first`` on: 0, or ``BACK_SECONDS`` or more before the last ``end``.
            first, end: frames.
            ends: whether an onset is there, of something above -70 dBFS in 50 ms; or the end of all.

        Returns:
            Notes that have ended.
        """
        found: list[Sounded] = []
        while True:
            self._measure(samples, first, end, partly=ends and self.sounds)
            if self.sounds:
                note = self._ended(samples, first)
                if note is None:
                    break
                found.append(note)
            elif not self._woken(samples, first):
                break
        if ends:
            if self.sounds and end > self.begin:
                found.append(Sounded(self.begin, end - self.begin, self._magnitudes))
            self._go_to(end, sounds=True)
        return found

    def _go_to(self, begin: int, *, sounds: bool, lowest: float = np.inf) -> None:
        self.begin, self.sounds = begin, sounds
        self._magnitudes = np.zeros(0, np.float32)
        self._lowest = np.float32(lowest)

    def _edge(self, level: int) -> int:
        return self.begin + level_edge(level, self._rate)

    def _measure(self, samples: Samples, first: int, end: int, *, partly: bool) -> None:
        """Adds the levels that are complete, or all."""
        done, complete = len(self._magnitudes), (end - self.begin) * LEVELS_PER_SECOND // self._rate
        edges = np.array([self._edge(level) for level in range(done, complete + 1)], np.int64)
        if not (partly and edges[-1] < end):
            end, edges = edges[-1], edges[:-1]
        if len(edges):
            new = np.maximum.reduceat(samples[edges[0] - first : end - first], edges - edges[0])
            self._magnitudes = np.concatenate([self._magnitudes, new])

    def _ended(self, samples: Samples, first: int) -> Sounded | None:
        """The note, if it has ended by itself; a gap begins."""
        levels = self._magnitudes
        least = np.maximum(np.maximum.accumulate(levels) * _FALLEN, SILENCE)
        runs = np.flatnonzero(_all_of(levels < least))
        if len(runs):
            count = int(runs[0])
            begin, end = self._edge(count - 1) - first, self._edge(count) - first
            end = self._edge(count) - int(np.argmax(samples[begin:end][::-1] >= least[count]))
            lowest = np.inf
        elif len(levels) > MAX_LEVELS:
            count, lowest = MAX_LEVELS, 0.0
            end = self._edge(count)
        else:
            return None
        note = Sounded(self.begin, end - self.begin, levels[:count])
        self._go_to(end, sounds=False, lowest=lowest)
        return note

    def _woken(self, samples: Samples, first: int) -> bool:
        """Whether a note has begun in the gap; if not, what has been judged is forgotten."""
        levels = self._magnitudes
        lowest = np.minimum.accumulate(np.concatenate([[self._lowest], levels]))
        least = np.maximum(lowest[:-1] * _RISEN, SILENCE)
        kept = max(0, len(levels) - _AGREEING + 1)
        loud = np.lib.stride_tricks.sliding_window_view(levels, _AGREEING).min(axis=1) if kept else levels[:0]
        runs = np.flatnonzero(loud >= least[:kept])
        if len(runs):
            level = int(runs[0])
            begin = self._edge(level)
            heard = samples[begin - first : self._edge(level + 1) - first] >= least[level]
            self._go_to(begin + int(np.argmax(heard)), sounds=True)
            return True
        self.begin, self._magnitudes, self._lowest = self._edge(kept), levels[kept:], lowest[kept]
        return False


def _all_of(flags: Flags) -> Flags:
    """Whether each and those after it are all true."""
    all_three: Flags = flags[:-2] & flags[1:-1] & flags[2:]
    return all_three
