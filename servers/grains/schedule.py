"""When notes are played: which are left out, and what follows in long ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from servers.grains.chance import Purpose, draws
from servers.grains.notes import LEVELS_PER_SECOND, Notes, magnitudes_of
from servers.grains.settings import Playing

Indices = NDArray[np.int64]
Values = NDArray[np.float64]

LEAST_SECONDS = 0.01
"""Between two grains of a note."""


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Grains to be played, in order of the notes and, within a note, of time.

    Attributes:
        notes: the note of each.
        numbers: which grain of its note it is, from 0.
        starts: its first frame.
        levels: how loud it should be: the note's peak, or the level at its place.
    """

    notes: Indices
    numbers: Indices
    starts: Indices
    levels: Values


def schedule(notes: Notes, playing: Playing, rate: int, end: int) -> Schedule:
    """Each note has a grain where it begins, but for those left out by chance with a density below 1.

    With one above 1 others follow, at every ``frames / density`` of the note, rounded down, but at least 10 ms apart.
    Nothing begins where the note is silent, nor at ``end`` or after it.

    Args:
        rate: in Hz.
        end: frames of the stem.
    """
    starts = notes.starts
    played = (starts < end) & (draws(playing.seed, starts, np.zeros_like(starts), Purpose.LEAVE_OUT) < playing.density)
    of = np.flatnonzero(played)
    frames = notes.frames[of].astype(np.float64)
    spacing = np.maximum(frames / max(playing.density, 1.0), LEAST_SECONDS * rate)
    numbers = np.arange(int(np.ceil(max(playing.density, 1.0))))
    offsets = np.floor(spacing[:, np.newaxis] * numbers)
    row, number = np.nonzero((offsets < frames[:, np.newaxis]) & (offsets < (end - starts[of])[:, np.newaxis]))
    which, offset = of[row], offsets[row, number].astype(np.int64)
    levels = _levels(notes, which, offset, rate)
    heard = levels > 0
    return Schedule(which[heard], number[heard], (starts[which] + offset)[heard], levels[heard])


def _levels(notes: Notes, which: Indices, offsets: Indices, rate: int) -> Values:
    """How loud notes are so many frames after they began; their peaks, where they begin."""
    levels = notes.peaks[which].astype(np.float64)
    later = np.flatnonzero((offsets > 0) & (np.diff(notes.level_edges)[which] > 0))
    begins, ends = notes.level_edges[which[later]], notes.level_edges[which[later] + 1]
    places = np.minimum(begins + offsets[later] * LEVELS_PER_SECOND // rate, ends - 1)
    levels[later] = magnitudes_of(notes.levels[places])
    return levels
