"""Tracks for the fake model, whose log tells what was computed, and clients for them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from servers.inference.segments import Samples
from servers.inference.separation import CHANNELS, GEOMETRY, Level, Separated, Separator
from servers.local import Stack
from servers.media.blocks import Block
from servers.platform.settings import Settings

DELAY = 0.2  # seconds that a segment takes
ARRIVED = 0.5  # seconds after which what was said to Triton has surely arrived
GAINS = np.array([0.1, 0.2, 0.3, 0.4], np.float32)[:, None, None]
CRASH = -12345.0
OUTPUT = (4, CHANNELS, GEOMETRY.length)
INPUT_BYTES, OUTPUT_BYTES = 4 * CHANNELS * GEOMETRY.length, 4 * 4 * CHANNELS * GEOMETRY.length
PLAIN = Level(0.0, 1.0)  # a track that is not normalised


@dataclass
class ComputeLog:
    """The fake model's log: the first sample of each segment, in the order of computation."""

    path: Path
    _seen: int = field(default=0)

    def begin(self) -> None:
        """Forget what was computed so far."""
        self._seen = self.path.stat().st_size

    def computed(self) -> list[float]:
        """First samples of the segments computed since ``begin``."""
        with self.path.open() as file:
            file.seek(self._seen)
            return [float(line) for line in file]

    @property
    def gate(self) -> Path:
        """As long as there is such a file, the model ends no segment."""
        return self.path.with_suffix(".gate")

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """No segment ends; what is asked and cancelled here has reached Triton when they end again."""
        self.gate.touch()
        try:
            yield
            await asyncio.sleep(ARRIVED)
        finally:
            self.gate.unlink()

    async def reaches(self, count: int) -> None:
        """Wait until ``count`` segments were computed, or are being computed, since ``begin``."""
        await eventually(lambda: len(self.computed()) >= count)


async def eventually(condition: Callable[[], bool], seconds: float = 100.0) -> float:
    """Wait until ``condition`` holds and return how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it never happened"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def window(value: float) -> Samples:
    """One segment, all of it ``value``."""
    return np.full((CHANNELS, GEOMETRY.length), value, np.float32)


def ramp(segments: int) -> Samples:
    """A track of that many segments in which the first sample of each segment but the last is its index."""
    frames = GEOMETRY.stride * (segments - 1) + 1000
    track = np.arange(frames, dtype=np.float32) / GEOMETRY.stride
    return np.stack([track, -track])


async def blocks(track: Samples, size: int = 100_003) -> AsyncIterator[Block]:
    """``track`` in blocks."""
    for start in range(0, track.shape[1], size):
        yield Block(track[:, start : start + size], 44_100, start)


async def separate(
    separator: Separator,
    track: Samples,
    on_part: Callable[[Separated], None] = lambda part: None,
    *,
    priority: int = 2,
) -> Samples:
    """All of the stems of ``track`` [sources, channels, frames], having checked that the parts follow each other."""
    parts: list[Samples] = []
    end = 0
    async for part in separator.separate(blocks(track), track.shape[1], PLAIN, priority=priority, request_id="test"):
        assert part.start == end
        end += part.samples.shape[-1]
        parts.append(part.samples)
        on_part(part)
    assert end == track.shape[1]
    return np.concatenate(parts, axis=-1)


def stub_pids(stack: Stack) -> list[int]:
    """The processes of the fake model."""
    found = []
    for child in psutil.Process(stack.processes["triton"].pid).children(recursive=True):
        with suppress(psutil.Error):
            if any(word.endswith("/htdemucs/1/model.py") for word in child.cmdline()):
                found.append(child.pid)
    return found


def kill_model(stack: Stack) -> None:
    """End the model's process without a word."""
    (pid,) = stub_pids(stack)
    os.kill(pid, signal.SIGKILL)


def our_regions() -> set[str]:
    """Names of the regions of this process in shared memory."""
    return {path.name for path in Path("/dev/shm").glob(f"contrafact-{os.getpid()}-*")}


def changed(settings: Settings, **values: object) -> Settings:
    """``settings`` but for ``values``."""
    return settings.model_copy(update=values)
