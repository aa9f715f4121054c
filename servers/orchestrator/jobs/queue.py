"""The queue: streaQ on Redis, and all that this system knows of it.

The queue only dispatches ids; PostgreSQL has the truth. So a lost queue loses nothing (the reconciler
fills it again) and a job that is delivered twice is run once (the second claim finds a live attempt).
Interactive jobs are always taken before background ones.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

from anyio import CancelScope, sleep_forever
from streaq import Worker

from servers.platform import telemetry
from servers.platform.settings import Settings
from servers.platform.tasks import Background

QUEUE = "contrafact"
PRIORITIES = ["BACKGROUND", "INTERACTIVE"]  # from lowest to highest

Handler = Callable[[UUID], Coroutine[Any, Any, None]]


class _Worker(Worker[None]):
    """streaQ's worker, but for signals: 7.2 takes them over whatever ``handle_signals`` says."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ending = asyncio.Event()

    async def signal_handler(self, scope: CancelScope) -> None:
        """Leave signals to whoever runs this worker; note when it ends, for whatever reason."""
        try:
            await sleep_forever()
        finally:
            self.ending.set()


def _worker(settings: Settings, jobs: _Jobs | None) -> tuple[_Worker, Any]:
    worker = _Worker(
        redis_url=settings.redis_url,
        redis_kwargs={"stream_timeout": 30, "connect_timeout": 5},
        queue_name=QUEUE,
        priorities=list(PRIORITIES),
        concurrency=settings.worker_concurrency,
        serializer=json.dumps,  # the default is pickle
        deserializer=json.loads,
        idle_timeout=settings.lease_seconds,
    )
    # One prefetched job more than run would be an order of priority decided too early.
    worker.prefetch = settings.worker_concurrency

    @worker.task(max_tries=None, timeout=None, ttl=0, name="run_job", silent=True)
    async def run_job(job_id: str) -> None:
        if jobs is not None:
            await jobs.run(UUID(job_id), worker.ending)

    return worker, run_job


class _Jobs:
    """The jobs that run here. They outlive the streaQ worker that took them when that loses Redis."""

    def __init__(self, handler: Handler, limit: int) -> None:
        self._handler = handler
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, job_id: UUID, ending: asyncio.Event) -> None:
        """Run a job to its end, or leave it running alone once ``ending`` is set."""
        if len(self._tasks) >= self._limit:
            return  # jobs of an earlier streaQ worker still run; the reconciler dispatches this one again
        task = asyncio.create_task(self._handler(job_id))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        ended = asyncio.create_task(ending.wait())
        try:
            await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            # Its lease runs out, and it is dispatched again.
            telemetry.log().error("job left alone", error=type(error).__name__, exc_info=error)

    async def all_done(self) -> None:
        """Wait until none runs."""
        while self._tasks:
            await asyncio.wait(self._tasks)


class QueueUnavailable(Exception):
    """The job was not dispatched; the reconciler will do it."""


class JobQueue(Background):
    """The sending side; used as a context manager.

    streaQ's client belongs to the task that opened it, so one task sends for all callers and connects
    again when Redis was away.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._outbox: asyncio.Queue[tuple[UUID, str, int, asyncio.Future[None]]] = asyncio.Queue(maxsize=1000)

    async def enqueue(self, job_id: UUID, priority: str, attempt: int) -> None:
        """Dispatch a job; the same job and attempt again while it waits changes nothing.

        Raises:
            QueueUnavailable: Redis cannot be reached within 5 s.
        """
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(5):
                await self._outbox.put((job_id, priority, attempt, sent))
                await sent
        except Exception as error:
            raise QueueUnavailable(type(error).__name__) from error

    async def _work(self) -> None:
        while True:
            try:
                worker, task = _worker(self._settings, None)
                async with worker:
                    while True:
                        await self._send(task)
            except Exception as error:
                telemetry.log().warning("queue lost, connecting again", error=type(error).__name__)
                await asyncio.sleep(1)

    async def _send(self, task: Any) -> None:
        job_id, priority, attempt, sent = await self._outbox.get()
        if sent.done():  # its caller has given up
            return
        message = task.enqueue(str(job_id)).start(priority=priority)
        message.id = f"{job_id}-{attempt}"
        try:
            await message
        except Exception as error:
            sent.set_exception(error)
            raise
        if not sent.done():
            sent.set_result(None)


async def consume(settings: Settings, handler: Handler, ready: asyncio.Event) -> None:
    """Run ``handler`` on every dispatched job until cancelled, at most ``worker_concurrency`` at a time.

    streaQ ends when Redis goes away, so it is started again here, for ever; jobs run on meanwhile. When
    cancelled, this waits for the handlers that run: the caller sees to it that they end.
    """
    logging.getLogger("streaq").setLevel(logging.ERROR)
    jobs = _Jobs(handler, settings.worker_concurrency)
    delay = 0.5
    try:
        while True:
            worker, _ = _worker(settings, jobs)
            started = asyncio.get_running_loop().time()
            try:
                ready.set()
                await worker.run_async()
            except Exception as error:
                telemetry.log().warning("queue lost, connecting again", error=type(error).__name__)
            if asyncio.get_running_loop().time() - started > 30:
                delay = 0.5
            await asyncio.sleep(delay)
            delay = min(delay * 2, 10)
    finally:
        await jobs.all_done()
