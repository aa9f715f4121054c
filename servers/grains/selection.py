"""Which grain is played for a note: the nearest, or one of the nearest."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from servers.grains.library import Library
from servers.grains.notes import Notes
from servers.grains.settings import Playing
from servers.grains.voice import INAUDIBLE

Values = NDArray[np.float64]
Indices = NDArray[np.int64]

SEMITONE = 1 / 12
STEPS = 2**20
"""Of an octave: distances are whole numbers of such steps, so that sums are exact and what is as near is a tie."""
_LEAST, _LEAST_HZ = 1e-6, 1.0  # what is less, magnitudes, seconds and frequencies, is taken for this
_LOOKED_AT = 64  # grains on either side
_KINDS = False, True  # whether with a pitch


class Selector:
    """Chooses grains for notes, in order.

    The distance of a grain from a note is the sum of the distances of their pitches, levels (RMS), brightnesses and
    durations, in octaves or factors of two, each times its weight; that of pitch is 1. Where the note has no pitch, or
    no grain has one, or pitch mapping is off, all grains are compared, and brightness, with a weight of 1, takes the
    place of pitch; else only grains with a pitch are. Silent grains are not, unless all are silent. What was chosen
    last is left aside if another grain is at most a semitone farther, unless repeats are allowed. Then one of those
    that are at most ``variation`` octaves farther than the nearest is chosen by chance, all as likely; without
    variation, the nearest, and of ties the first.

    A choice without weights costs the logarithm of the number of grains; with them, the note is compared with those
    grains that are near enough in pitch alone.

    Args:
        library: one grain at least.
        rate: of the notes' positions, in Hz.
    """

    def __init__(self, library: Library, playing: Playing, rate: int) -> None:
        self._library, self._playing, self._rate = library, playing, rate
        audible = np.flatnonzero(library.peaks >= INAUDIBLE)
        self._audible = audible if len(audible) else np.arange(len(library))
        self._pitched = self._audible[library.pitches[self._audible] > 0]
        self._last = -1

    def choose(self, notes: Notes, which: Indices, chances: Values) -> Indices:
        """One grain for each of ``which``, indices of ``notes``; what was chosen before counts.

        Args:
            chances: as many, from 0 up to 1.
        """
        pitches, seconds = notes.pitches[which], notes.frames[which] / self._rate
        pitched = (pitches > 0) & (self._playing.pitch_mapping and len(self._pitched) > 0)
        targets = [self._features(kind, pitches, notes.rms[which], notes.brightness[which], seconds) for kind in _KINDS]
        chosen = np.empty(len(which), np.int64)
        for row, (kind, chance) in enumerate(zip(pitched.tolist(), chances.tolist(), strict=True)):
            field = self._by_pitch if kind else self._by_brightness
            self._last = chosen[row] = field.choose(targets[kind][:, row], self._last, chance)
        return chosen

    @cached_property
    def _by_pitch(self) -> _Field:
        return self._field(True, self._pitched)

    @cached_property
    def _by_brightness(self) -> _Field:
        return self._field(False, self._audible)

    def _field(self, pitched: bool, grains: Indices) -> _Field:
        library = self._library
        seconds = (library.lengths - library.onsets)[grains] / library.sample_rate
        columns = (library.pitches[grains], library.rms[grains], library.brightness[grains], seconds)
        features = self._features(pitched, *columns)
        return (_Line if len(features) == 1 else _Field)(features, grains, self._playing)

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

    Args:
        features: ``[features, n]``, of those that may be chosen.
        grains: which they are, ascending.
    """

    def __init__(self, features: Values, grains: Indices, playing: Playing) -> None:
        order = np.argsort(features[0], kind="stable")
        self._features, self._grains = np.ascontiguousarray(features[:, order]), grains[order]
        self._first = self._features[0]
        self._variation, self._allow_repeats = playing.variation, playing.allow_repeats or len(grains) == 1

    def choose(self, target: Values, last: int, chance: float) -> int:
        """A grain for what has those features ``[features]``."""
        begin, end = self._near(target)
        grains, distances = self._grains[begin:end], self._distances(target, begin, end)
        others = grains != last
        if not (self._allow_repeats or others.all()) and distances[others].min() <= distances[~others][0] + SEMITONE:
            grains, distances = grains[others], distances[others]
        near = grains[distances <= distances.min() + self._variation]
        return int(near[int(chance * len(near))] if self._variation else near.min())

    def _near(self, target: Values) -> tuple[int, int]:
        """From and to which place are all grains that are at most ``variation`` farther than the second nearest.

        The second nearest of a few whose first feature is nearest is no nearer than the second nearest of all, and what
        is farther than that by its first feature alone needs no comparison.
        """
        middle = int(np.searchsorted(self._first, target[0]))
        distances = self._distances(target, max(0, middle - _LOOKED_AT), middle + _LOOKED_AT)
        return self._within(float(target[0]), float(np.sort(distances)[:2][-1]) + self._variation)

    def _within(self, wanted: float, reach: float) -> tuple[int, int]:
        """From and to which place the first feature is at most so far from what is wanted."""
        begin, end = np.searchsorted(self._first, wanted - reach), np.searchsorted(self._first, wanted + reach, "right")
        return int(begin), int(end)

    def _distances(self, target: Values, begin: int, end: int) -> Values:
        distances: Values = np.abs(self._features[:, begin:end] - target[:, np.newaxis]).sum(axis=0)
        return distances


class _Line(_Field):
    """The same with one feature: those that may be chosen follow each other, so that none needs to be looked at."""

    def __init__(self, features: Values, grains: Indices, playing: Playing) -> None:
        super().__init__(features, grains, playing)
        self._places = np.full(int(grains.max(initial=-1)) + 1, -1)  # of all grains up to the last that is there
        self._places[self._grains] = np.arange(len(grains))

    def choose(self, target: Values, last: int, chance: float) -> int:
        """A grain for what has that feature ``[1]``."""
        wanted = float(target[0])
        middle = int(np.searchsorted(self._first, wanted))
        places = range(max(0, middle - 2), min(len(self._first), middle + 2))  # the two nearest are among them
        far = {place: abs(float(self._first[place]) - wanted) for place in places}
        left_out = int(self._places[last]) if 0 <= last < len(self._places) and not self._allow_repeats else -1
        others = min(distance for place, distance in far.items() if place != left_out)
        if left_out >= 0 and others > abs(float(self._first[left_out]) - wanted) + SEMITONE:
            left_out = -1
        begin, end = self._within(wanted, (min(far.values()) if left_out < 0 else others) + self._variation)
        if self._variation:
            place = begin + int(chance * (end - begin - (begin <= left_out < end)))
            return int(self._grains[place + (begin <= left_out <= place)])
        # All are as near: those below what is wanted, then those above, have their first grains first.
        firsts = (place + (place == left_out) for place in (begin, middle))
        return min(int(self._grains[place]) for place, past in zip(firsts, (middle, end), strict=True) if place < past)
