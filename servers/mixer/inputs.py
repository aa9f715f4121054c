"""One input on its way into a mix: its audio at the mix's rate, laid out in the mix's chunks, and its loudness."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from servers.media.loudness import LoudnessMeter
from servers.media.resample import Resampler
from servers.mixer.placing import Placement

Samples = NDArray[np.float32]


class Grid:
    """The chunks of a mix, all of one length but the last.

    Attributes:
        chunks: how many there are.
    """

    def __init__(self, frames: int, chunk: int) -> None:
        self._frames, self._chunk = frames, chunk
        self.chunks = -(-frames // chunk)

    def at(self, frame: int) -> int:
        """The chunk of a frame."""
        return frame // self._chunk

    def start(self, number: int) -> int:
        """First frame of a chunk."""
        return number * self._chunk

    def length(self, number: int) -> int:
        """Frames of a chunk."""
        return min(self._chunk, self._frames - number * self._chunk)


class Input:
    """One input. It keeps the chunks that are whole until they are dropped, and nothing of those it is silent in.

    Attributes:
        placement: where it lies.
        received: its frames that came.
        known: frames of the mix, from its first on, for which nothing more of it is needed.
        complete: chunks, from the first on, that are whole.
    """

    def __init__(self, placement: Placement, grid: Grid, rate: int) -> None:
        self.placement = placement
        self.received = 0
        self.known = placement.known(0)
        self.complete = grid.at(placement.first) if placement.needed else grid.chunks
        self._grid = grid
        self._next = placement.begin  # frame of the mix
        self._resampler: Resampler | None = None
        if placement.sample_rate != rate:
            self._resampler = Resampler(placement.sample_rate, rate, channels=placement.channels)
        self._open: Samples | None = None
        self._waiting: deque[Samples] = deque()
        self._oldest = self.complete  # number of the first that waits
        self._meter: LoudnessMeter | None = None
        self._listeners: list[Callable[[list[float]], None]] = []
        self._measured = 0  # chunks
        self._rate = rate

    @property
    def metered(self) -> bool:
        """Whether somebody listens to its loudness."""
        return self._meter is not None

    def tell(self, listener: Callable[[list[float]], None]) -> None:
        """Give ``listener`` the loudness of this input, before gains, from the mix's start to the end of each hop."""
        self._meter = self._meter or LoudnessMeter(self._rate, self.placement.channels)
        self._listeners.append(listener)

    def add(self, samples: Samples) -> None:
        """Append frames, float32 ``[channels, n]``; what nobody needs is dropped."""
        used = samples[:, : max(0, self.placement.needed - self.received)]
        self.received += samples.shape[1]
        self.known = self.placement.known(self.received)
        if not used.shape[1]:
            return
        if self._resampler is None:
            self._lay(used)
            return
        self._lay(self._resampler.process(used))
        if self.received >= self.placement.needed:
            self._lay(self._resampler.finish())
            missing = self.placement.last - self._next  # by a frame, libsoxr may round otherwise than we
            self._lay(np.zeros((self.placement.channels, max(0, missing)), np.float32))

    def measure(self, until: int) -> None:
        """Measure the chunks up to number ``until`` that were not; they must be whole."""
        while self._meter is not None and self._measured < until:
            samples = self.chunk(self._measured)
            if samples is None:
                samples = np.zeros((self.placement.channels, self._grid.length(self._measured)), np.float32)
            loudness = self._meter.process(samples)
            for listener in self._listeners:
                listener(loudness)
            self._measured += 1

    def chunk(self, number: int) -> Samples | None:
        """A whole chunk that was not dropped; None where this input is silent."""
        place = number - self._oldest
        return self._waiting[place] if 0 <= place < len(self._waiting) else None

    def drop(self, number: int) -> None:
        """Forget a chunk: the first of those kept."""
        if self._waiting and number == self._oldest:
            self._waiting.popleft()
            self._oldest += 1

    def _lay(self, samples: Samples) -> None:
        """Lay frames that follow the last, at the mix's rate, into chunks."""
        taken = min(max(0, -self._next), samples.shape[1])  # what lies before the mix
        self._next += taken
        end = min(samples.shape[1], taken + self.placement.last - self._next)
        while taken < end:
            start, length = self._grid.start(self.complete), self._grid.length(self.complete)
            if self._open is None:
                self._open = np.zeros((self.placement.channels, length), np.float32)
            at = self._next - start
            count = min(end - taken, length - at)
            self._open[:, at : at + count] = samples[:, taken : taken + count]
            taken += count
            self._next += count
            ended = self._next == self.placement.last
            if ended or at + count == length:
                self._waiting.append(self._open)
                self._open = None
                self.complete = self._grid.chunks if ended else self.complete + 1
