"""Which grain is played for a note: the nearest, or one of the nearest."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from servers.grains.library import Library
from servers.grains.notes import Notes
from servers.grains.settings import Playing

Values = NDArray[np.float64]
Indices = NDArray[np.int64]

SEMITONE = 1 / 12
STEPS = 2**20
"""Of an octave: distances are whole numbers of such steps, so that sums are exact and what is as near is a tie."""
_LEAST, _LEAST_HZ = 1e-6, 1.0  # what is less, magnitudes, seconds and frequencies, is taken for this
_BLOCK = 256  # notes
_LOOKED_AT = 64  # grains on either side


class Selector:
    """Chooses grains for notes, in order.

    The distance of a grain from a note is the sum of the distances of their pitches, levels (RMS), brightnesses and
    durations, in octaves or factors of two, each times its weight; that of pitch is 1. Where the note has no pitch, or
    no grain has one, or pitch mapping is off, all grains are compared, and brightness, with a weight of 1, takes the
    place of pitch; else only grains with a pitch are. What was chosen last is left aside if another grain is at most a
    semitone farther, unless repeats are allowed. Then one of those that are at most ``variation`` octaves farther than
    the nearest is chosen by chance, all as likely; without variation, the nearest, and of ties the first.

    A choice without weights and variation costs the logarithm of the number of grains; else the note is compared with
    those grains that are near enough in pitch alone.

    Args:
        library: one grain at least.
        rate: of the notes' positions, in Hz.
    """

    def __init__(self, library: Library, playing: Playing, rate: int) -> None:
        self._library, self._playing, self._rate = library, playing, rate
        self._pitched = np.flatnonzero(library.pitches > 0)
        self._last = -1

    def choose(self, notes: Notes, which: Indices, chances: Values) -> Indices:
        """One grain for each of ``which``, indices of ``notes``; what was chosen before counts.

        Args:
            chances: as many, from 0 up to 1.
        """
        chosen = np.empty(len(which), np.int64)
        for first in range(0, len(which), _BLOCK):
            block = slice(first, first + _BLOCK)
            near = self._near(notes, which[block])
            for row, chance in enumerate(chances[block].tolist(), first):
                self._last = chosen[row] = self._one(*near[row - first], chance)
        return chosen

    def _one(self, field: _Field, target: Values, begin: int, end: int, chance: float) -> int:
        grains, distances = field.grains[begin:end], field.distances(target, begin, end)
        if not self._playing.allow_repeats and len(grains) > 1:
            others = grains != self._last
            if not others.all() and distances[others].min() <= distances[~others][0] + SEMITONE:
                grains, distances = grains[others], distances[others]
        near = grains[distances <= distances.min() + self._playing.variation]
        rank = int(chance * len(near)) if self._playing.variation else 0
        return int(np.partition(near, rank)[rank])

    def _near(self, notes: Notes, which: Indices) -> list[tuple[_Field, Values, int, int]]:
        """For each note, with what it is compared, as what, and which places have all that may be chosen."""
        pitched = notes.pitches[which] > 0
        if not (self._playing.pitch_mapping and len(self._pitched)):
            pitched[:] = False
        near: dict[int, tuple[_Field, Values, int, int]] = {}
        for kind in np.unique(pitched):
            rows = np.flatnonzero(pitched == kind)
            field = self._by_pitch if kind else self._by_brightness
            of = which[rows]
            seconds = notes.frames[of] / self._rate
            targets = self._features(kind, notes.pitches[of], notes.rms[of], notes.brightness[of], seconds)
            begins, ends = field.near(targets, self._playing.variation)
            for place, row in enumerate(rows.tolist()):
                near[row] = field, targets[:, place], begins[place], ends[place]
        return [near[row] for row in range(len(which))]

    @cached_property
    def _by_pitch(self) -> _Field:
        return self._field(True, self._pitched)

    @cached_property
    def _by_brightness(self) -> _Field:
        return self._field(False, np.arange(len(self._library.pitches)))

    def _field(self, pitched: bool, grains: Indices) -> _Field:
        library = self._library
        seconds = (library.lengths - library.onsets)[grains] / library.sample_rate
        columns = (library.pitches[grains], library.rms[grains], library.brightness[grains], seconds)
        return _Field(self._features(pitched, *columns), grains)

    def _features(
        self, pitched: bool, pitches: ArrayLike, rms: ArrayLike, brightness: ArrayLike, seconds: ArrayLike
    ) -> Values:
        """What is compared, in octaves: ``[features, n]``, first pitch or brightness."""
        playing = self._playing
        columns = [_octaves(pitches if pitched else brightness, _LEAST_HZ)]
        if playing.level_weight:
            columns.append(playing.level_weight * _octaves(rms, _LEAST))
        if playing.duration_weight:
            columns.append(playing.duration_weight * _octaves(seconds, _LEAST))
        if playing.brightness_weight and pitched:
            columns.append(playing.brightness_weight * _octaves(brightness, _LEAST_HZ))
        features: Values = np.rint(np.stack(columns) * STEPS) / STEPS
        return features


def _octaves(values: ArrayLike, least: float) -> Values:
    octaves: Values = np.log2(np.maximum(np.asarray(values, np.float64), least))
    return octaves


class _Field:
    """Grains in order of their first feature, so that near ones are found.

    Attributes:
        grains: which grain is in each place.
    """

    def __init__(self, features: Values, grains: Indices) -> None:
        order = np.argsort(features[0], kind="stable")
        self._features, self.grains = np.ascontiguousarray(features[:, order]), grains[order]
        self._looked_at = 2 if len(features) == 1 else _LOOKED_AT

    def distances(self, target: Values, begin: int, end: int) -> Values:
        """Of the grains in places ``begin`` to ``end`` from a target ``[features]``."""
        distances: Values = np.abs(self._features[:, begin:end] - target[:, np.newaxis]).sum(axis=0)
        return distances

    def near(self, targets: Values, farther: float) -> tuple[list[int], list[int]]:
        """From and to which place are all grains that are at most ``farther`` than the second nearest of each target.

        The second nearest of a few whose first feature is nearest is no nearer than the second nearest of all, and what
        is farther than that by its first feature alone needs no comparison.

        Args:
            targets: ``[features, n]``.
        """
        first = self._features[0]
        middle = np.searchsorted(first, targets[0])
        places = middle[:, np.newaxis] + np.arange(-self._looked_at, self._looked_at)
        there = (places >= 0) & (places < len(first))
        looked_at = self._features[:, np.clip(places, 0, len(first) - 1)]
        distances = np.abs(looked_at - targets[:, :, np.newaxis]).sum(axis=0)
        distances[~there] = np.inf
        reach = np.partition(distances, 1, axis=1)[:, 1] + farther
        begins = np.searchsorted(first, targets[0] - reach, "left")
        return begins.tolist(), np.searchsorted(first, targets[0] + reach, "right").tolist()
