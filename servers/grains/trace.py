"""Finds what is played in a stem, while it streams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from servers.grains import onsets
from servers.grains.features import brightness_of
from servers.grains.notes import Notes, edges_of, join, levels_of, no_notes
from servers.grains.offset import Offset
from servers.grains.pitch import pitches
from servers.grains.sounding import BACK_SECONDS, END_SECONDS, SILENCE, Sounded, Sounding
from servers.media.mono import Mono

Samples = NDArray[np.float32]

TRACE_VERSION = 1
_STEP_SECONDS = 2
_HEAD_SECONDS = 0.12
_VALUES = 4  # pitch, peak, rms, brightness
_HEARD_SECONDS = 0.05  # in which a sound must be above -70 dBFS to be an onset
_BESIDE_SECONDS = 0.02
_CLEAR, _ENDED = 0.1, 0.1  # an onset is certain; what is left of a sound's power when it has ended


class Tracing:
    """Finds notes: each from an onset to the next, or to silence.

    Notes come at most 3 s after their ends, and do not depend on how the stem was cut. Memory does not grow with its
    length.

    Args:
        rate: in Hz, 8,000 to 384,000.
        channels: 1 or 2.
        frames: exactly how many will come.

    Attributes:
        until: all notes that begin before this frame have been given.
    """

    def __init__(self, rate: int, channels: int, frames: int) -> None:
        self._rate, self._frames = rate, frames
        self._step = np.zeros((channels, _STEP_SECONDS * rate), np.float32)
        self._filled = 0
        self._mono, self._onsets, self._sounding = Mono(rate, channels), onsets.Onsets(rate), Sounding(rate)
        self._offset = Offset(rate)
        self._kept = np.zeros((3, 0), np.float32)  # mono, magnitude and power from frame `_first` on
        self._first = 0
        self._begun: list[int] = []  # onsets that are not judged yet
        self._latest = -rate
        self._head: Samples | None = None  # what is known of the note that sounds, `[1, 4]`
        self.until = 0

    def process(self, samples: Samples) -> Notes:
        """Take in float32 ``[channels, n]``, finite; returns the notes that are known with it."""
        found: list[Notes] = []
        while samples.shape[1]:
            part = samples[:, : self._step.shape[1] - self._filled]
            self._step[:, self._filled : self._filled + part.shape[1]] = part
            self._filled += part.shape[1]
            samples = samples[:, part.shape[1] :]
            if self._filled == self._step.shape[1]:
                found.append(self._take(self._step, last=False))
                self._filled = 0
        return join(found)

    def finish(self) -> Notes:
        """The last notes. Call once, last."""
        notes = self._take(self._step[:, : self._filled], last=True)
        self.until = self._frames
        return notes

    def _take(self, samples: Samples, *, last: bool) -> Notes:
        if samples.shape[1]:
            self._add(self._keep(samples))
        if last:
            self._add(self._onsets.finish())
        end = self._first + self._kept.shape[1]
        known = end if last else self._onsets.until - round(onsets.BACK_SECONDS * self._rate)
        ended: list[Sounded] = []
        while self._begun and self._begun[0] < known:
            ended += self._sounding.go_on(self._kept[1], self._first, self._begun.pop(0), ends=True)
        ended += self._sounding.go_on(self._kept[1], self._first, known, ends=last)
        notes = self._described(ended, known)
        self.until = self._sounding.begin
        self._forget(known)
        return notes

    def _keep(self, samples: Samples) -> NDArray[np.int64]:
        """Takes in a step; returns onsets, roughly."""
        mono = self._mono.process(samples)
        new = np.concatenate([mono[None], self._offset.levels(samples)])
        self._kept = np.concatenate([self._kept, new], axis=1)
        return self._onsets.process(mono)

    def _add(self, found: NDArray[np.int64]) -> None:
        """Takes in onsets; those that begin something, and not too near to another, are kept."""
        if not len(found):
            return
        places, clarity = onsets.refined(self._kept[0], found - self._first, self._rate)
        for place, clear in zip(places.tolist(), (clarity >= _CLEAR).tolist(), strict=True):
            start = self._first + place
            is_apart = start - self._latest >= onsets.REFRACTORY_SECONDS * self._rate
            if is_apart and self._is_heard(place) and (clear or not self._ends(place)):
                self._begun.append(start)
                self._latest = start

    def _is_heard(self, place: int) -> bool:
        return bool(self._kept[1, place : place + round(_HEARD_SECONDS * self._rate)].max() >= SILENCE)

    def _ends(self, place: int) -> bool:
        """Whether something ends there: where a sound is cut off, there is a click."""
        beside, power = round(_BESIDE_SECONDS * self._rate), self._kept[2]
        before = power[max(0, place - beside) : place].sum(dtype=np.float64)
        after = power[place + beside : place + 2 * beside].sum(dtype=np.float64)
        return bool(after < _ENDED * before)

    def _described(self, ended: Sequence[Sounded], known: int) -> Notes:
        """Notes that have ended, with all that is known of them."""
        if self._head is not None and not ended:
            return no_notes()
        length, begin = round(_HEAD_SECONDS * self._rate), self._sounding.begin
        carried = np.zeros((0, _VALUES), np.float32) if self._head is None else self._head
        heads = [(note.start, min(note.frames, length)) for note in ended[len(carried) :]]
        # Before its end is known it is not measured: it may be shorter.
        is_open = self._sounding.sounds and known - begin >= length + round(END_SECONDS * self._rate)
        if is_open:
            heads.append((begin, length))
        values = np.concatenate([carried, self._measured(heads)])
        self._head = values[-1:] if is_open else None
        pitch, peaks, rms, brightness = values[: len(ended)].T
        return Notes(
            np.array([note.start for note in ended], np.int64),
            np.array([note.frames for note in ended], np.int64),
            pitch,
            peaks,
            rms,
            brightness,
            levels_of(np.concatenate([np.zeros(0, np.float32), *(note.magnitudes for note in ended)])),
            edges_of(len(note.magnitudes) for note in ended),
        )

    def _measured(self, heads: Sequence[tuple[int, int]]) -> Samples:
        """Pitch, peak, rms and brightness of some beginnings of notes: float32 ``[n, 4]``."""
        parts = [self._kept[:, start - self._first : start - self._first + frames] for start, frames in heads]
        if not parts:
            return np.zeros((0, _VALUES), np.float32)
        mono = [part[0] for part in parts]
        peaks = [part[1].max() for part in parts]
        rms = [np.sqrt(part[2].mean(dtype=np.float64)) for part in parts]
        columns = (pitches(mono, self._rate), peaks, rms, brightness_of(mono, self._rate))
        return np.stack([np.asarray(column, np.float32) for column in columns], axis=1)

    def _forget(self, known: int) -> None:
        """Drops what nothing that may still come needs."""
        needed = known - round(BACK_SECONDS * self._rate)
        if self._sounding.sounds and self._head is None:
            needed = min(needed, self._sounding.begin)
        dropped = max(0, needed - self._first)
        self._kept = self._kept[:, dropped:].copy()
        self._first += dropped
