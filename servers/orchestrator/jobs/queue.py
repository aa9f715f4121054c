"""The queue: streaQ on Redis, and all that this system knows of it.

The queue delivers tickets: whoever gets one takes jobs, one after the other, until there is none that he may take.
Which job is next is decided when somebody is free, by PostgreSQL (``JobStore.claim``): so priorities, turns and
limits hold whatever was sent when, a lost queue loses nothing (workers are woken again every second while jobs wait),
and a ticket too many costs one look.

What changes with the number of jobs: measured on two cores (``python -m tests.bench jobs``), and from that computed for
jobs of 30 segments and 10 s and a PostgreSQL of 8 cores (``python -m tests.bench scale``).

* 10 a minute: nothing. One worker, and stores that have nothing to do; a job is claimed 0.6 ms after somebody is free.
* 1,000 a minute: 70 slots of workers, 1.4 cores of PostgreSQL and 0.4 of Redis. Nearly all of it is progress and live
  pieces (8,600 commands and 5,800 transactions a second), not dispatch: empty jobs go through at 270 to 300 a second,
  a quarter of what bare streaQ does, and claims at 1,750. If 100,000 wait, claims are no slower, but counting takes
  each server 50 ms, again and again (see ``Load``). 10,000 jobs of one lock make its claims slower (4 ms).
* 2,400 a minute fill the one core that a Redis uses, 5,800 the eight of PostgreSQL. Before that: tell progress less
  often than at each segment, publish no events of jobs that nobody watches, store larger live pieces. At 100,000 a
  minute, with 7,000 slots, owners are to be split among some fifty installations like this one: they share nothing
  but recordings.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

from anyio import CancelScope, sleep_forever
from streaq import Worker

from servers.platform import telemetry
from servers.platform.settings import Settings
from servers.platform.tasks import Background, stopped

QUEUE = "contrafact"
WAKING = 256  # tickets by which waiting jobs are called to mind, at most
_SEND_SECONDS = 1.0
LOOK_SECONDS = 2.0  # so soon, about, a job begins of which nobody was told

Handler = Callable[[], Coroutine[Any, Any, None]]


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


def _worker(settings: Settings, slots: _Slots | None) -> tuple[_Worker, Any]:
    worker = _Worker(
        redis_url=settings.redis_url,
        redis_kwargs={"stream_timeout": 30, "connect_timeout": 5},
        queue_name=QUEUE,
        concurrency=_slots(settings),
        serializer=json.dumps,  # the default is pickle
        deserializer=json.loads,
        idle_timeout=settings.lease_seconds,
    )
    worker.prefetch = worker.concurrency  # a ticket that waits here would wake nobody else

    @worker.task(max_tries=None, timeout=None, ttl=0, name="run_jobs", silent=True)
    async def run_jobs() -> None:
        if slots is not None:
            await slots.fill(worker.ending)

    return worker, run_jobs


def _slots(settings: Settings) -> int:
    return settings.worker_concurrency + settings.interactive_slots


class _Slots:
    """Where jobs run. They outlive the streaQ worker that brought their ticket when that loses Redis."""

    def __init__(self, handler: Handler, limit: int) -> None:
        self._handler = handler
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()

    async def fill(self, ending: asyncio.Event) -> None:
        """Run jobs while there are any, or leave them running alone once ``ending`` is set."""
        ended = asyncio.create_task(ending.wait())
        try:
            while len(self._tasks) >= self._limit and not ending.is_set():  # those that looked without a ticket
                await asyncio.wait({ended, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.is_set():
                await asyncio.wait({ended, self._start()}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()

    async def look(self) -> None:
        """For ever: now and then see without any ticket whether there are jobs, if a slot is free."""
        while True:
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.5, 1.5))
            if len(self._tasks) < self._limit:
                self._start()

    def _start(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self._handler())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            # The lease of its job runs out, and that is begun again.
            telemetry.log().error("job left alone", error=type(error).__name__, exc_info=error)

    async def all_done(self) -> None:
        """Wait until none runs."""
        while self._tasks:
            await asyncio.wait(self._tasks)


class QueueUnavailable(Exception):
    """Nobody was woken; the dispatcher will do it."""


class JobQueue(Background):
    """The sending side; used as a context manager.

    streaQ's client belongs to the task that opened it, so one task sends for all callers and connects
    again when Redis was away.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._outbox: asyncio.Queue[tuple[str, asyncio.Future[None]]] = asyncio.Queue(maxsize=1000)

    async def send(self, ticket: str) -> None:
        """Wake a worker; while there is a ticket of the same name under way this changes nothing.

        Raises:
            QueueUnavailable: Redis cannot be reached within a second.
        """
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(_SEND_SECONDS):
                await self._outbox.put((ticket, sent))
                await sent
        except Exception as error:
            raise QueueUnavailable(type(error).__name__) from error

    async def wake(self, workers: int) -> None:
        """Wake so many workers, at most ``WAKING``; the same again while they are at it changes nothing."""
        for number in range(min(workers, WAKING)):
            await self.send(f"wake-{number}")

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
        ticket, sent = await self._outbox.get()
        if sent.done():  # its caller has given up
            return
        message = task.enqueue()
        message.id = ticket
        try:
            await message
        except Exception as error:
            sent.set_exception(error)
            raise
        if not sent.done():
            sent.set_result(None)


async def consume(settings: Settings, handler: Handler, ready: asyncio.Event) -> None:
    """Run ``handler`` for every ticket until cancelled, as many at a time as a worker has slots.

    streaQ ends when Redis goes away, so it is started again here, for ever. Meanwhile running jobs run on, and others
    begin, if later than with tickets. When cancelled, this waits for the handlers that run: the caller sees to it that
    they end.
    """
    logging.getLogger("streaq").setLevel(logging.ERROR)
    slots = _Slots(handler, _slots(settings))
    looking = asyncio.create_task(slots.look())
    delay = 0.5
    try:
        while True:
            worker, _ = _worker(settings, slots)
            started = asyncio.get_running_loop().time()
            try:
                ready.set()
                await worker.run_async()
            except Exception as error:
                telemetry.log().warning("queue lost, connecting again", error=type(error).__name__)
            if asyncio.get_running_loop().time() - started > 30:
                delay = 0.5
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5)
    finally:
        await stopped(looking)
        await slots.all_done()
