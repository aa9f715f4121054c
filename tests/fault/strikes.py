"""What followed a fault."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

PATIENCE_SECONDS = 120.0  # for what was struck to be well, for jobs to go on, for things to be tidied


@dataclass
class Strike:
    """One fault, when it struck, and what followed.

    Attributes:
        at: Seconds since the epoch.
        jobs: How many jobs waited or ran then.
        waiting: Of those that ran, the ones that have not gone on since.
        progress: Seconds until anything went on: an attempt began, a piece was stored, a job ended.
        stall: Seconds until every job that ran then had gone on.
        healthy: Seconds from the fault's end until what it struck was well.
    """

    kind: str
    at: float
    jobs: int
    waiting: set[uuid.UUID]
    progress: float | None = None
    stall: float | None = None
    healthy: float | None = None

    def moved(self, job: uuid.UUID) -> None:
        """Take note that a job went on."""
        if self.progress is None:
            self.progress = time.time() - self.at
        self.waiting.discard(job)
        if not self.waiting and self.stall is None:
            self.stall = time.time() - self.at


async def eventually(condition: Callable[[], Awaitable[bool]], pause: float = 0.05) -> None:
    """Wait until a condition holds; one that cannot be asked does not. Raises TimeoutError after a while."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with contextlib.suppress(Exception):
                if await condition():
                    return
            await asyncio.sleep(pause)
