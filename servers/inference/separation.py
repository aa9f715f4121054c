"""Separation as a stream of blocks: normalise, window, infer, overlap-add.

Several segments are under way at once, a bounded number; results come in order. What is kept in memory is
those segments and a little history, whatever the track's length.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass

import numpy as np

from servers.inference.keeper import ModelKeeper
from servers.inference.segments import Geometry, History, OverlapAdd, Samples, Segment, plan
from servers.inference.triton import Triton, TritonError
from servers.media.blocks import Block
from servers.platform import telemetry
from servers.platform.settings import Settings

SAMPLE_RATE = 44_100
CHANNELS = 2
SOURCES = ("drums", "bass", "other", "vocals")  # in the order of the model's output
GEOMETRY = Geometry(length=343_980, stride=257_985)  # 7.8 s, 25 % overlap

ATTEMPTS = 3
RETRY_SECONDS = 0.2  # before the first new attempt; it doubles with each
# Worth another try, after the model's process was looked after; anything else is our own mistake.
_TRANSIENT = frozenset(
    {"UNAVAILABLE", "INTERNAL", "UNKNOWN", "NOT_FOUND", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED"}
)


class SegmentFailed(Exception):
    """A segment could not be inferred, whatever was tried."""


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
        self._triton = triton
        self._retry_seconds = retry_seconds
        self._suspects = {priority: asyncio.Lock() for priority in (1, 2)}
        self._keeper = keeper
        self._in_flight = settings.segments_in_flight
        self._timeout = settings.segment_timeout_seconds
        self._skip_covered = settings.skip_covered_segment

    async def separate(
        self, blocks: AsyncIterator[Block], frames: int, level: Level, *, priority: int, request_id: str
    ) -> AsyncGenerator[Separated, None]:
        """Separate a stream of stereo blocks at 44.1 kHz.

        Args:
            blocks: The track: ``frames`` frames of [2, n] in order. Closing them is the caller's business.
            frames: Its length, at least 1.
            level: Of the whole track.
            priority: 1 overtakes 2 between segments.
            request_id: Names this track in Triton's log.

        Yields:
            Each segment's final frames, in order; together exactly ``frames``.

        Raises:
            SegmentFailed: The model failed again and again.
            ModelUnavailable: It could not be loaded for a long time.
            ValueError: ``blocks`` ended early.
        """
        scale = np.float32(level.std + 1e-8)  # as demucs.api.Separator.separate_tensor
        mean = np.float32(level.mean)
        overlap_add = OverlapAdd(GEOMETRY)
        waiting: deque[tuple[Segment, asyncio.Task[Samples]]] = deque()
        nudges: set[asyncio.Task[None]] = set()
        history = History(CHANNELS, float(mean), float(1 / scale))
        windows = _windows(blocks, plan(frames, GEOMETRY, skip_covered=self._skip_covered), frames, history)

        async def submit() -> bool:
            """Start on the next segment; returns whether there was one."""
            if (item := await anext(windows, None)) is None:
                return False
            segment, window = item
            inference = self._infer(window, segment, priority, f"{request_id}/{segment.index}")
            waiting.append((segment, asyncio.create_task(inference)))
            return True

        try:
            while len(waiting) < self._in_flight and await submit():
                pass
            while waiting:
                segment, task = waiting[0]
                answer = await task
                waiting.popleft()
                # The model gets its next segment before this one is passed on, however long that takes.
                if not await submit() and waiting:
                    nudges.add(asyncio.create_task(self._nudge(priority)))
                yield Separated(overlap_add.add(segment, answer) * scale + mean, segment.start)
        finally:
            tasks = [*nudges, *(task for _, task in waiting)]
            for unfinished in tasks:
                unfinished.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await windows.aclose()

    async def _nudge(self, priority: int) -> None:
        """Wake Triton's batcher with an empty request.

        With priorities, it often leaves a waiting segment alone for half a second although the model is idle,
        unless another request comes (see model_repository/README.md). While segments keep coming they do this.
        """
        with contextlib.suppress(TritonError):
            await self._triton.probe(self._keeper.model, self._timeout, priority=priority)

    async def _infer(self, window: Samples, segment: Segment, priority: int, request_id: str) -> Samples:
        """The model's answer [sources, channels, segment.frames], tried again when Triton or the model died."""
        model = self._keeper.model
        failures = 0
        while True:
            started = time.perf_counter()
            # A segment that kills the model fails its neighbours too, so what failed is tried again one at a time.
            alone = self._suspects[priority] if failures else contextlib.nullcontext()
            try:
                async with alone:
                    if failures:
                        await self._keeper.wait(check=True)
                    answer = await self._infer_once(window, segment, priority, request_id)
            except TritonError as error:
                if error.status not in _TRANSIENT and "shared memory region" not in error.message:
                    raise SegmentFailed(str(error)) from error
                if not error.busy:  # waiting behind others, however long, is no failure
                    failures += 1
                if failures == ATTEMPTS:
                    raise SegmentFailed(f"{failures} attempts, last: {error}") from error
                telemetry.SEGMENT_RETRIES.labels(model, error.status).inc()
                telemetry.log().warning("segment failed, trying again", status=error.status, failures=failures)
                await asyncio.sleep(self._retry_seconds * 2**failures * random.uniform(0.5, 1.5))
            else:
                self._keeper.answered()
                telemetry.SEGMENT_SECONDS.labels(model).observe(time.perf_counter() - started)
                return answer

    async def _infer_once(self, window: Samples, segment: Segment, priority: int, request_id: str) -> Samples:
        shape = (len(SOURCES), CHANNELS, GEOMETRY.length)
        margin = segment.start - segment.window
        async with self._triton.region(window.nbytes, 4 * int(np.prod(shape))) as region:
            if region is not None:
                region.array(0, window.shape)[:] = window
            answer = await self._triton.infer(
                self._keeper.model,
                window,
                shape,
                region=region,
                priority=priority,
                timeout=self._timeout,
                request_id=request_id,
            )
            telemetry.SEGMENTS.labels(self._keeper.model, "inline" if region is None else "shared_memory").inc()
            return answer[..., margin : margin + segment.frames].copy()


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
        window = np.empty((CHANNELS, GEOMETRY.length), np.float32)
        history.window(segment.window, GEOMETRY.length, window)
        # The next window reaches back at most half a segment before its start.
        history.forget(segment.start + GEOMETRY.stride - GEOMETRY.length // 2)
        yield segment, window
