"""Runs jobs: claims them, keeps their lease, tells the world, and sees every one to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import Enum
from typing import Any
from uuid import UUID

import asyncpg
import structlog
from contrafact.v1 import job_pb2

from servers.orchestrator.jobs import messages
from servers.orchestrator.jobs.events import JobEvents
from servers.orchestrator.jobs.queue import JobQueue, QueueUnavailable
from servers.orchestrator.jobs.store import JobStore, LeaseLost
from servers.platform import telemetry
from servers.platform.settings import Settings
from servers.platform.tasks import stopped
from servers.storage.database import Row
from servers.storage.outages import OUTAGES, patiently

RETRY_SECONDS = 5.0  # after the first failure; it doubles with each
BEAT_SECONDS = 1.0
FOLLOWERS = 100  # that end with their leader, one after the other, before others have their turn again
END_SECONDS = 30.0  # for so long it is tried to write down how an attempt ended
_DATABASE_TROUBLE: tuple[type[Exception], ...] = (asyncpg.PostgresError, *OUTAGES)


class JobFailure(Exception):
    """A pipeline gives up for a reason that the caller should hear.

    Args:
        reason: UPPER_SNAKE_CASE.
        message: A sentence for people.
        retryable: Whether the same job may succeed later.
    """

    def __init__(self, reason: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retryable = retryable


class _Stop(Enum):
    CANCELLED = "the caller cancelled"
    LOST = "another attempt took over"
    DRAINING = "this worker stops"
    OVERTAKEN = "somebody waits for it: let his job go on with it, at his priority"


class JobRun:
    """One attempt at one job, as its pipeline sees it."""

    def __init__(self, row: Row, store: JobStore, events: JobEvents) -> None:
        self.row = row
        self.id: UUID = row["id"]
        self.attempt: int = row["attempt"]
        self.priority = 1 if row["priority"] == "INTERACTIVE" else 2
        self.store = store
        self.events = events
        self.warnings: list[str] = []
        self.timings: list[dict[str, Any]] = []
        self._stage = "UNSPECIFIED"
        self._stage_began = time.monotonic()
        self._fraction = 0.0
        self._rate_from: tuple[float, float] | None = None  # time and fraction at the first progress
        self._followers: list[Row] = []

    async def stage(self, name: str) -> None:
        """Enter a stage: the name of a value of the proto enum ``Stage`` without its prefix."""
        self.end_stage()
        self._stage = name
        self._rate_from = None  # stages differ in speed
        await self._publish_progress()

    def end_stage(self) -> None:
        """Leave the current stage without entering another."""
        now = time.monotonic()
        if self._stage != "UNSPECIFIED":
            seconds = now - self._stage_began
            self.timings.append({"stage": self._stage, "seconds": round(seconds, 4)})
            telemetry.STAGE_SECONDS.labels(self.row["kind"], self._stage).observe(seconds)
        self._stage_began = now

    async def progress(self, fraction: float) -> None:
        """Say that ``fraction`` (0 to 1) of the whole work is done."""
        self._fraction = max(self._fraction, min(fraction, 1.0))
        if self._rate_from is None:
            self._rate_from = (time.monotonic(), self._fraction)
        await self._publish_progress()

    def eta(self) -> float | None:
        """Estimated seconds to the end, once there is a rate to judge by."""
        if self._rate_from is None or self._fraction <= self._rate_from[1]:
            return None
        rate = (self._fraction - self._rate_from[1]) / (time.monotonic() - self._rate_from[0])
        return (1 - self._fraction) / rate

    async def _publish_progress(self) -> None:
        progress = job_pb2.Progress(
            stage=job_pb2.Stage.Value(f"STAGE_{self._stage}"),
            fraction=self._fraction,
            eta=messages.duration(self.eta()),
        )
        await self.publish(job_pb2.JobEvent(progress=progress))

    async def publish(self, event: job_pb2.JobEvent) -> None:
        """Tell those who watch this job, or another that waits for the same work."""
        await self.events.publish([self.id, *(row["id"] for row in self._followers)], event)

    @property
    def overtaken(self) -> bool:
        """Whether somebody waits for what is being done in the background."""
        waiting = bool(self._followers) and self._followers[0]["priority"] == "INTERACTIVE"
        return waiting and self.row["priority"] == "BACKGROUND"

    async def beat(self) -> bool:
        """Renew the lease; returns whether the job is to be cancelled. Raises LeaseLost."""
        if self.row["lock"] is not None:
            self._followers = await self.store.followers(self.row["lock"])
        return await self.store.beat(self.id, self.attempt, self._stage, self._fraction, self.eta())


Pipeline = Callable[[JobRun], Awaitable[None]]


class Runner:
    """Runs jobs with the pipelines of their kinds."""

    def __init__(
        self,
        pipelines: dict[str, Pipeline],
        store: JobStore,
        events: JobEvents,
        queue: JobQueue,
        settings: Settings,
    ) -> None:
        self._pipelines = pipelines
        self._store = store
        self._events = events
        self._queue = queue
        self._settings = settings
        self._name = f"{socket.gethostname()}/{os.getpid()}"
        self._claiming = asyncio.Lock()
        self._taken: list[Row] = []  # the jobs that run here
        self._running: dict[asyncio.Future[None], list[_Stop]] = {}
        self._draining = False

    async def drain(self) -> None:
        """Stop all running jobs and hand them back to the queue, now and henceforth."""
        self._draining = True
        for task, why in self._running.items():
            why.append(_Stop.DRAINING)
            task.cancel()

    async def serve(self) -> None:
        """Run jobs, one after the other, until there is none that may run here."""
        lock, same = None, 0
        while not self._draining:
            state = None
            async with self._taking(lock) as row:
                if row is not None:
                    state = await self._handle(row)
            if row is None and lock is None:
                return
            # Whoever waited for the same is next: for them it is done, or one of them takes it over.
            same = same + 1 if lock else 0
            goes_on = row is not None and state in ("SUCCEEDED", "CANCELLED") and same < FOLLOWERS
            lock = row["lock"] if row is not None and goes_on else None

    @asynccontextmanager
    async def _taking(self, lock: str | None) -> AsyncIterator[Row | None]:
        """Claim a job and occupy a place with it; None: there is none, or no place for it."""
        try:
            async with self._claiming:  # or two would take the last place
                row = await self._claim(lock)
                if row is not None:
                    self._taken.append(row)
        except _DATABASE_TROUBLE as error:  # the dispatcher wakes us again
            telemetry.log().warning("no job claimed", error=type(error).__name__)
            row = None
        try:
            yield row
        finally:
            if row is not None:
                self._taken.remove(row)

    async def _claim(self, lock: str | None) -> Row | None:
        limits = self._settings.job_limits
        kinds = Counter(row["kind"] for row in self._taken)
        priorities = Counter(row["priority"] for row in self._taken)
        return await self._store.claim(
            [kind for kind in self._pipelines if kinds[kind] < limits.get(kind, sys.maxsize)],
            background=priorities["BACKGROUND"] < self._settings.worker_concurrency,
            worker=self._name,
            ageing_seconds=self._settings.background_ageing_seconds,
            lock=lock,
        )

    async def _handle(self, row: Row) -> str | None:
        """Run a claimed job; returns when this attempt has ended, with the final state if that ended the job."""
        run = JobRun(row, self._store, self._events)
        ids = {"job_id": str(row["id"]), "request_id": row["headers"].get("x-request-id", "")}
        with (
            structlog.contextvars.bound_contextvars(**ids),
            telemetry.span("job", row["headers"], kind=row["kind"], attempt=run.attempt),
        ):
            try:
                return await self._attempt(run)
            except LeaseLost:
                telemetry.log().warning("lease lost", attempt=run.attempt)
            except _DATABASE_TROUBLE as error:  # its beginning or end could not be written down: its lease runs out
                telemetry.log().warning("job left alone", error=type(error).__name__, detail=str(error)[:200])
        return None

    async def _attempt(self, run: JobRun) -> str | None:
        row = run.row
        if row["cancel_requested"]:
            return await self._finish(run, "CANCELLED")
        telemetry.log().info("job begins", kind=row["kind"], attempt=run.attempt)
        if run.attempt == 1:
            waited = (row["started_at"] - row["created_at"]).total_seconds()
            telemetry.JOB_WAIT_SECONDS.labels(row["kind"], row["priority"]).observe(waited)
        await self._tell(run, row)

        why: list[_Stop] = []
        work = asyncio.ensure_future(self._pipelines[row["kind"]](run))
        self._running[work] = why
        if self._draining:  # since this job was claimed
            why.append(_Stop.DRAINING)
            work.cancel()
        beating = asyncio.create_task(self._beating(run, work, why))
        trouble: Exception | None = None
        try:
            await work
        except asyncio.CancelledError:
            if not why:
                raise
        except LeaseLost:
            raise
        except Exception as error:
            trouble = error
        finally:
            del self._running[work]
            await stopped(beating)
        # What goes wrong while the work is being stopped is no failure of it.
        match why[0] if why else trouble:
            case None:
                return await self._finish(run, "SUCCEEDED")
            case _Stop.CANCELLED:
                return await self._finish(run, "CANCELLED")
            case _Stop.DRAINING | _Stop.OVERTAKEN:
                return await self._hand_back(run)
            case Exception() as failure:
                return await self._ended_badly(run, failure)
        return None  # LOST: it is somebody else's

    async def _hand_back(self, run: JobRun, **failure: Any) -> str | None:
        """Return the job to the queue; its final state if it was to be cancelled."""
        row = await patiently(lambda: self._store.hand_back(run.id, run.attempt, **failure), END_SECONDS)
        if row is None:
            raise LeaseLost
        if row["state"] == "QUEUED":
            with contextlib.suppress(QueueUnavailable):
                await self._queue.send(f"{run.id}-{run.attempt}")
            return None
        return await self._ended(run, row)

    async def _ended_badly(self, run: JobRun, error: Exception) -> str | None:
        """After an outage, put the job back for a while, unless it has had enough of them; else it fails."""
        if isinstance(error, JobFailure):
            return await self._fail(run, error)
        telemetry.log().error("attempt failed", error=type(error).__name__, exc_info=error)
        if not isinstance(error, OUTAGES):
            return await self._fail(run, JobFailure("INTERNAL", type(error).__name__))
        failures = run.row["failures"] + 1
        if failures >= self._settings.max_job_failures:
            return await self._fail(run, JobFailure("INFRASTRUCTURE", type(error).__name__, retryable=True))
        delay = RETRY_SECONDS * 2 ** (failures - 1) * random.uniform(0.5, 1.5)
        return await self._hand_back(run, retry_in=delay, reason="INFRASTRUCTURE", message=type(error).__name__)

    async def _beating(self, run: JobRun, work: asyncio.Future[None], why: list[_Stop]) -> None:
        while True:
            try:
                if await run.beat():
                    why.append(_Stop.CANCELLED)
                elif run.overtaken:
                    why.append(_Stop.OVERTAKEN)
            except LeaseLost:
                why.append(_Stop.LOST)
            except _DATABASE_TROUBLE as error:
                # The work may go on: writes are fenced, whoever takes over meanwhile wins.
                telemetry.log().warning("lease not renewed", error=type(error).__name__)
            if why:
                work.cancel()
                return
            await asyncio.sleep(BEAT_SECONDS)

    async def _fail(self, run: JobRun, failure: JobFailure) -> str:
        error = {"reason": failure.reason, "message": failure.message, "retryable": failure.retryable}
        return await self._finish(run, "FAILED", error)

    async def _finish(self, run: JobRun, state: str, error: dict[str, Any] | None = None) -> str:
        run.end_stage()
        what: dict[str, Any] = {"error": error, "warnings": run.warnings, "timings": run.timings}
        try:
            row = await patiently(lambda: self._store.finish(run.id, run.attempt, state, **what), END_SECONDS)
        except LeaseLost:
            # Or it was written down, but the connection was lost before we heard of it.
            found = await self._store.get(run.id)
            if found is None or (found["attempt"], found["state"]) != (run.attempt, state):
                raise
            row = found
        return await self._ended(run, row)

    async def _ended(self, run: JobRun, row: Row) -> str:
        """Tell of a job that has ended; its state."""
        reason = row["error"]["reason"] if row["error"] else ""
        telemetry.JOBS.labels(row["kind"], row["state"], reason).inc()
        telemetry.log().info("job ended", state=row["state"], reason=reason)
        await self._tell(run, row)
        if row["state"] == "SUCCEEDED":
            await self._events.ready(row["kind"], row["track_id"], row["id"])
        return str(row["state"])

    async def _tell(self, run: JobRun, row: Row) -> None:
        results = await self._store.results([run.id])
        await self._events.publish([run.id], job_pb2.JobEvent(job=messages.job(row, results)))
