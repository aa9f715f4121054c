"""Asking a model until it answers: what fails for a moment is tried again, and a dead model is seen to."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from servers.inference.keeper import ModelKeeper
from servers.inference.triton import Answer, Question, Region, Triton, TritonError
from servers.platform import telemetry
from servers.platform.settings import Settings
from servers.platform.slots import Slots

T = TypeVar("T")

ATTEMPTS = 3
RETRY_SECONDS = 0.2  # before the first new attempt; it doubles with each
# Worth another try, after the model's process was looked after; anything else is our own mistake.
_TRANSIENT = frozenset(
    {"UNAVAILABLE", "INTERNAL", "UNKNOWN", "NOT_FOUND", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED"}
)


class InferenceFailed(Exception):
    """The model did not answer, whatever was tried."""


class InferenceRefused(InferenceFailed):
    """The model does not do what it was asked, and would not if it was asked again."""


class Asker:
    """Asks one model on Triton: many questions at once, and the rest wait for their turn."""

    def __init__(
        self, triton: Triton, keeper: ModelKeeper, settings: Settings, *, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        self.model = keeper.model
        self.timeout = settings.segment_timeout_seconds
        self._triton = triton
        self._keeper = keeper
        self._retry_seconds = retry_seconds
        self._slots = Slots(keeper.model, settings.model_requests_in_flight)
        self._suspects = {priority: asyncio.Lock() for priority in (1, 2)}

    async def ask(
        self,
        question: Question,
        take: Callable[[Answer], T],
        *,
        output_bytes: int | None,
        priority: int,
        request_id: str,
        final: Callable[[TritonError], bool] = lambda error: False,
    ) -> T:
        """What ``take`` makes of the answer, tried again when Triton or the model died.

        Args:
            question: What to ask.
            take: Copies what is wanted: the answer's memory is used again.
            output_bytes: Most that the large output needs, always the same with the same size of input, because
                shared memory of that size is kept; None: both go inline.
            priority: 1 overtakes 2, here and in Triton. Waiting here counts against no timeout.
            request_id: Names the question in Triton's log.
            final: Tells errors that are an answer, not a failure; they are raised at once.

        Raises:
            InferenceFailed: The model failed again and again, or (InferenceRefused) it refuses.
            ModelUnavailable: It could not be loaded for a long time.
            TritonError: One that is ``final``.
        """
        failures = 0
        while True:
            # A question that kills the model fails its neighbours too, so what failed is tried again one at a time.
            alone = self._suspects[priority] if failures else contextlib.nullcontext()
            try:
                async with alone:
                    if failures:
                        await self._keeper.wait(check=True)
                    async with self._slots.hold(priority):
                        started = time.perf_counter()
                        taken = await self._once(question, take, output_bytes, priority, request_id)
            except TritonError as error:
                if final(error):
                    raise
                if error.status not in _TRANSIENT and "shared memory region" not in error.message:
                    raise InferenceRefused(str(error)) from error
                if not error.busy:  # waiting behind others, however long, is no failure
                    failures += 1
                if failures == ATTEMPTS:
                    raise InferenceFailed(f"{failures} attempts, last: {error}") from error
                telemetry.SEGMENT_RETRIES.labels(self.model, error.status).inc()
                telemetry.log().warning("inference failed, trying again", status=error.status, failures=failures)
                await asyncio.sleep(self._retry_seconds * 2**failures * random.uniform(0.5, 1.5))
            else:
                self._keeper.answered()
                telemetry.SEGMENT_SECONDS.labels(self.model).observe(time.perf_counter() - started)
                return taken

    @asynccontextmanager
    async def nudging(self, priority: int) -> AsyncIterator[Callable[[], None]]:
        """A function to call after an answer, when there is nothing to ask at once.

        With priorities, Triton's batcher often leaves what waits alone for half a second although the model is idle,
        unless another request comes (see model_repository/README.md). So this sends an empty one, and waits for
        nothing; while questions keep coming they do the same.
        """
        nudges: set[asyncio.Task[None]] = set()

        async def send() -> None:
            with contextlib.suppress(TritonError):
                await self._triton.probe(self.model, self.timeout, priority=priority)

        def nudge() -> None:
            task = asyncio.create_task(send())
            nudges.add(task)
            task.add_done_callback(nudges.discard)

        try:
            yield nudge
        finally:
            for task in nudges:
                task.cancel()
            await asyncio.gather(*nudges, return_exceptions=True)

    async def _once(
        self,
        question: Question,
        take: Callable[[Answer], T],
        output_bytes: int | None,
        priority: int,
        request_id: str,
    ) -> T:
        if output_bytes is None:
            return await self._send(question, take, None, priority, request_id)
        async with self._triton.region(question.samples.nbytes, output_bytes) as region:
            if region is not None:
                region.array(0, question.samples.shape)[:] = question.samples
            return await self._send(question, take, region, priority, request_id)

    async def _send(
        self, question: Question, take: Callable[[Answer], T], region: Region | None, priority: int, request_id: str
    ) -> T:
        answer = await self._triton.infer(
            question, region=region, priority=priority, timeout=self.timeout, request_id=request_id
        )
        telemetry.SEGMENTS.labels(self.model, "inline" if region is None else "shared_memory").inc()
        return take(answer)
