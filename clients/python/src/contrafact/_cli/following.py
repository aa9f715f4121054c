"""What the commands that make something share: reporting, following the job while saving, and timing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from contrafact._cli.progress import Reporter, reporter
from contrafact._cli.running import describe, exit_code

if TYPE_CHECKING:
    from contrafact._job import JobHandle
    from contrafact.v1.job_pb2 import Job

T = TypeVar("T")


class Clock:
    """How long it takes.

    Attributes:
        first_audio: seconds until the first sound could be heard; None: not yet.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.first_audio: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def heard(self, frames_ready: int) -> None:
        """Note the time when the first frames can be decoded."""
        if frames_ready and self.first_audio is None:
            self.first_audio = self.seconds

    def summary(self) -> str:
        """Return the times for people."""
        heard = "" if self.first_audio is None else f", first audio after {self.first_audio:.1f} s"
        return f"made in {self.seconds:.1f} s{heard}"

    def facts(self) -> dict[str, float | None]:
        """Return the times for machines."""
        heard = None if self.first_audio is None else round(self.first_audio, 3)
        return {"seconds": round(self.seconds, 3), "first_audio_seconds": heard}


@contextlib.contextmanager
def reporting(json: bool) -> Iterator[Reporter]:
    """Give a reporter, and tell it how the work ended if it did not end well."""
    show = reporter(json)
    try:
        yield show
    except asyncio.CancelledError:
        show.note("interrupted", interrupted=True)
        raise
    except Exception as error:
        if json:
            reason, message = describe(error)
            show.note(message, failed=True, reason=reason, exit_code=exit_code(error))
        raise
    finally:
        show.close()


@contextlib.asynccontextmanager
async def cancelling(job: JobHandle, show: Reporter) -> AsyncIterator[None]:
    """Cancel the job when the work is interrupted, or nobody reads its result any more."""
    try:
        yield
    except (asyncio.CancelledError, BrokenPipeError):
        with contextlib.suppress(Exception):
            async with asyncio.timeout(10.0):
                await job.cancel()
                show.note(f"cancelled {job.name}")
        raise


async def follow(job: JobHandle, show: Reporter, saving: Coroutine[Any, Any, T]) -> tuple[Job, T]:
    """Follow the job and save what it makes at once; the first failure of either ends both."""
    both = (asyncio.ensure_future(job.wait(show.job_event)), asyncio.ensure_future(saving))
    try:
        return await asyncio.gather(*both)
    finally:
        for each in both:
            each.cancel()
        await asyncio.gather(*both, return_exceptions=True)


def warn(job: Job, show: Reporter) -> None:
    """Show the warnings of a job."""
    for warning in job.warnings:
        show.note(f"warning: {warning}")
