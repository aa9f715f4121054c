"""One stem, played with grains, note by note: what is ready, what comes out."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
from contrafact.engine.v1 import grains_pb2
from numpy.typing import NDArray

from servers.grains.chance import Purpose, draws
from servers.grains.library import Library
from servers.grains.notes import Notes, no_notes
from servers.grains.schedule import schedule
from servers.grains.selection import Selector
from servers.grains.settings import playing
from servers.grains.voice import INAUDIBLE, POWER_SECONDS, Voices, cents_between

Samples = NDArray[np.float32]

RENDER_VERSION = 1
"""Of what notes and a library sound like: it counts up with every change that a stored layer would differ by."""


class UnfitNotes(ValueError):
    """Notes that do not go on where those before ended."""


class _Grain(NamedTuple):
    """A grain that will be played, one of ``grains`` of its note; those that begin together are added in order."""

    start: int
    order: int
    grain: int
    cents: int
    level: float
    spacing: float
    grains: int
    left: float
    right: float


class Rendering:
    """Audio made of grains, in bounded memory: float32, added up in the order in which grains begin.

    What comes out depends neither on how notes were cut into batches nor on what ``until`` was.

    Args:
        library: of any rate and channels: a grain is resampled when it is played. A mono one is in the middle, at full
            level in both channels; of a stereo one, mono has the average.
        spec: what to play; its rules must have been checked.

    Attributes:
        position: frames that came out.
    """

    def __init__(self, library: Library, spec: grains_pb2.RenderSpec) -> None:
        self.position = 0
        self._library, self._rate, self._channels, self._frames = library, spec.sample_rate, spec.channels, spec.frames
        self._playing = playing(spec.settings)
        self._selector = Selector(library, self._playing, self._rate)
        self._voices = Voices(library, self._playing, self._rate, self._channels)
        self._waiting: list[_Grain] = []
        self._tail = np.zeros((self._channels, 0), np.float32)  # what goes on at `position`
        self._reach = 0  # the frame where that ends
        self._last = self._scheduled = self._notes = self._played = 0
        self._used = np.zeros(len(library), np.bool_)

    def add(self, notes: Notes, until: int) -> Samples:
        """Take in notes; what they make ready.

        Args:
            notes: the next ones.
            until: all notes that begin before this frame came, and maybe later ones.

        Returns:
            float32 ``[channels, n]``, up to frame ``until`` or the end: memory is bounded if each step is.

        Raises:
            UnfitNotes: they are not in order or begin before the last ``until``, or that was after this one.
        """
        if until < self.position:
            raise UnfitNotes(f"all notes before frame {self.position} came already, not only those before {until}")
        if (np.diff(notes.starts, prepend=self._last) < 0).any():
            raise UnfitNotes(f"notes must be in order, from frame {self._last} on")
        self._last = max(int(notes.starts[-1]) if len(notes) else self._last, until)
        self._notes += len(notes)
        self._schedule(notes)
        return self._ready(min(until, self._frames))

    def finish(self) -> Samples:
        """The rest. All notes came."""
        return self.add(no_notes(), self._frames)

    def report(self) -> grains_pb2.RenderReport:
        """What was played so far."""
        return grains_pb2.RenderReport(
            notes=self._notes,
            grains=self._played,
            different_grains=int(np.count_nonzero(self._used)),
            version=RENDER_VERSION,
        )

    def _schedule(self, notes: Notes) -> None:
        seed, spread = self._playing.seed, self._playing.spread
        plan = schedule(notes, self._playing, self._rate, self._frames)
        starts = notes.starts[plan.notes]
        chosen = self._selector.choose(notes, plan.notes, draws(seed, starts, plan.numbers, Purpose.CHOOSE)).tolist()
        cents = [0] * len(chosen)
        if self._playing.shift:
            pitches = notes.pitches[plan.notes].tolist(), self._library.pitches[chosen].tolist()
            cents = [cents_between(own, wanted) for wanted, own in zip(*pitches, strict=True)]
        angles = np.pi / 4 * (1 + spread * (2 * draws(seed, starts, plan.numbers, Purpose.PLACE) - 1))
        sides = np.sqrt(2) * np.cos(angles), np.sqrt(2) * np.sin(angles)
        spacings = plan.spacings / (POWER_SECONDS * self._rate)
        columns = [
            plan.starts.tolist(),
            chosen,
            cents,
            *(column.tolist() for column in (plan.levels, spacings, plan.counts, *sides)),
        ]
        for start, *rest in zip(*columns, strict=True):
            heapq.heappush(self._waiting, _Grain(start, self._scheduled, *rest))
            self._scheduled += 1

    def _ready(self, end: int) -> Samples:
        """The next frames, up to ``end``."""
        frames = end - self.position
        if not frames:
            return np.zeros((self._channels, 0), np.float32)
        audio = np.zeros((self._channels, frames + self._voices.frames), np.float32)
        audio[:, : self._tail.shape[1]] = self._tail
        while self._waiting and self._waiting[0].start < end:
            self._play(heapq.heappop(self._waiting), audio)
        self._tail = audio[:, frames : max(frames, self._reach - self.position)].copy()
        self.position = end
        return audio[:, :frames]

    def _play(self, grain: _Grain, audio: Samples) -> None:
        """Add a grain to ``audio``, which begins at ``position``."""
        voice = self._voices.voice(grain.grain, grain.cents)
        if voice.peak < INAUDIBLE:
            return
        begin = grain.start - self.position
        frames = min(voice.samples.shape[1], self._frames - grain.start)
        gain = 1.0
        if self._playing.follow_level:
            gain = grain.level / voice.loud / voice.overlap(grain.spacing, grain.grains)
        for channel, side in enumerate((grain.left, grain.right) if self._channels == 2 else (1.0,)):
            samples = voice.samples[min(channel, len(voice.samples) - 1), :frames]
            audio[channel, begin : begin + frames] += np.float32(gain * side) * samples
        self._reach = max(self._reach, grain.start + frames)
        self._played += 1
        self._used[grain.grain] = True
