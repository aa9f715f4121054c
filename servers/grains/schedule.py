"""When notes are played: how many grains each has, and where."""

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
        counts: how many grains its note has.
        spacings: frames from one of them to the next.
        levels: how loud it should be: the note's peak, or the level at its place.
    """

    notes: Indices
    numbers: Indices
    starts: Indices
    counts: Indices
    spacings: Values
    levels: Values


def schedule(notes: Notes, playing: Playing, rate: int, end: int) -> Schedule:
    """Each note has as many grains as the density, rounded up or down by chance: it is their mean.

    The first is where the note begins, the others follow at every ``frames / grains`` of the note, rounded down, but at
    least 10 ms apart. Nothing begins where the note is silent, nor at ``end`` or after it.

    Args:
        rate: in Hz.
        end: frames of the stem.
    """
    starts = notes.starts
    least, more = divmod(playing.density, 1.0)
    counts = int(least) + (draws(playing.seed, starts, np.zeros_like(starts), Purpose.COUNT) < more).astype(np.int64)
    spacings = np.maximum(notes.frames / np.maximum(counts, 1), LEAST_SECONDS * rate)
    counts = np.minimum(counts, np.ceil(notes.frames / spacings).astype(np.int64))
    numbers = np.arange(int(counts.max(initial=0)))
    offsets = np.floor(spacings[:, np.newaxis] * numbers).astype(np.int64)
    within = (numbers < counts[:, np.newaxis]) & (offsets < np.minimum(notes.frames, end - starts)[:, np.newaxis])
    which, number = np.nonzero(within)
    offset = offsets[which, number]
    levels = _levels(notes, which, offset, rate)
    heard = levels > 0
    which, number, offset = which[heard], number[heard], offset[heard]
    return Schedule(which, number, starts[which] + offset, counts[which], spacings[which], levels[heard])


def _levels(notes: Notes, which: Indices, offsets: Indices, rate: int) -> Values:
    """How loud notes are so many frames after they began; their peaks, where they begin."""
    levels = notes.peaks[which].astype(np.float64)
    later = np.flatnonzero((offsets > 0) & (np.diff(notes.level_edges)[which] > 0))
    begins, ends = notes.level_edges[which[later]], notes.level_edges[which[later] + 1]
    places = np.minimum(begins + offsets[later] * LEVELS_PER_SECOND // rate, ends - 1)
    levels[later] = magnitudes_of(notes.levels[places])
    return levels
