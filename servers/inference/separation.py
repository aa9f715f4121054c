"""Separation as a stream of blocks: normalise, window, infer, overlap-add.

Several segments are under way at once, a bounded number; results come in order. What is kept in memory is
those segments and a little history, whatever the track's length.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass

import numpy as np

from servers.inference.asking import RETRY_SECONDS, Asker
from servers.inference.keeper import ModelKeeper
from servers.inference.segments import Geometry, History, OverlapAdd, Samples, Segment, plan
from servers.inference.triton import Question, Triton
from servers.media.blocks import Block
from servers.platform.settings import Settings

SAMPLE_RATE = 44_100
CHANNELS = 2
SOURCES = ("drums", "bass", "other", "vocals")  # in the order of the model's output
GEOMETRY = Geometry(length=343_980, stride=257_985)  # 7.8 s, 25 % overlap


@dataclass(frozen=True, slots=True)
class Level:
    """Mean and standard deviation of a track's mono downmix, by which ``demucs`` normalises its input."""

    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class Separated:
    """Finished frames of all sources: ``samples`` float32 [len(SOURCES), CHANNELS, frames] from ``start`` on."""

    samples: Samples
    start: int


class Separator:
    """Separates tracks with one model on Triton; any number at once."""

    def __init__(
        self, triton: Triton, keeper: ModelKeeper, settings: Settings, *, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        self._asker = Asker(triton, keeper, settings, retry_seconds=retry_seconds)
        self._in_flight = settings.segments_in_flight
        self._skip_covered = settings.skip_covered_segment

    async def separate(
        self, blocks: AsyncIterator[Block], frames: int, level: Level, *, priority: int, request_id: str, first: int = 0
    ) -> AsyncGenerator[Separated, None]:
        """Separate a stream of stereo blocks at 44.1 kHz.

        Args:
            blocks: The track: ``frames`` frames of [2, n] in order. Closing them is the caller's business.
            frames: Its length, at least 1.
            level: Of the whole track.
            priority: 1 overtakes 2 between segments.
            request_id: Names this track in Triton's log.
            first: Number of the segment to begin with. What comes is the same as without it, but for what is before.

        Yields:
            Each segment's final frames, in order; together exactly those from ``first * GEOMETRY.stride`` on.

        Raises:
            InferenceFailed: The model failed again and again.
            ModelUnavailable: It could not be loaded for a long time.
            ValueError: ``blocks`` ended early.
        """
        scale = np.float32(level.std + 1e-8)  # as demucs.api.Separator.separate_tensor
        mean = np.float32(level.mean)
        overlap_add = OverlapAdd(GEOMETRY)
        waiting: deque[tuple[Segment, asyncio.Task[Samples]]] = deque()
        history = History(CHANNELS, float(mean), float(1 / scale))
        segments = plan(frames, GEOMETRY, skip_covered=self._skip_covered, first=first)
        windows = _windows(blocks, segments, frames, history)

        async def submit() -> bool:
            """Start on the next segment; returns whether there was one."""
            if (item := await anext(windows, None)) is None:
                return False
            segment, window = item
            inference = self._infer(window, segment, priority, f"{request_id}/{segment.index}")
            waiting.append((segment, asyncio.create_task(inference)))
            return True

        async with self._asker.nudging(priority) as nudge:
            try:
                while len(waiting) < self._in_flight and await submit():
                    pass
                while waiting:
                    segment, task = waiting[0]
                    answer = await task
                    waiting.popleft()
                    # The model gets its next segment before this one is passed on, however long that takes.
                    if not await submit() and waiting:
                        nudge()
                    finished = overlap_add.add(segment, answer)
                    unwanted = max(0, first * GEOMETRY.stride - segment.start)
                    if unwanted < finished.shape[-1]:
                        yield Separated(finished[..., unwanted:] * scale + mean, segment.start + unwanted)
            finally:
                for _, unfinished in waiting:
                    unfinished.cancel()
                await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)
                await windows.aclose()

    async def _infer(self, window: Samples, segment: Segment, priority: int, request_id: str) -> Samples:
        """The model's answer [sources, channels, segment.frames]."""
        shape = (len(SOURCES), CHANNELS, GEOMETRY.length)
        margin = segment.start - segment.window
        return await self._asker.ask(
            Question(self._asker.model, "mix", window, "stems", shape),
            lambda answer: answer.samples[..., margin : margin + segment.frames].copy(),
            output_bytes=4 * int(np.prod(shape)),
            priority=priority,
            request_id=request_id,
        )


async def _windows(
    blocks: AsyncIterator[Block], segments: Iterator[Segment], frames: int, history: History
) -> AsyncGenerator[tuple[Segment, Samples], None]:
    """Each segment with the window [CHANNELS, GEOMETRY.length] that the model sees."""
    for segment in segments:
        while history.end < min(segment.window + GEOMETRY.length, frames):
            block = await anext(blocks, None)
            if block is None:
                raise ValueError(f"the track ended after {history.end} of {frames} frames")
            history.append(block.samples)
            history.forget(segment.window)  # or all before the first segment would be kept
        window = np.empty((CHANNELS, GEOMETRY.length), np.float32)
        history.window(segment.window, GEOMETRY.length, window)
        # The next window reaches back at most half a segment before its start.
        history.forget(segment.start + GEOMETRY.stride - GEOMETRY.length // 2)
        yield segment, window
