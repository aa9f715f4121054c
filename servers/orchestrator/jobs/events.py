"""Events of jobs: a Redis stream each, read from any cursor by any number of listeners.

The stream is a convenience: what must not be lost (states, stems, live pieces) is in PostgreSQL first,
and listeners look there when the stream is silent. All listeners of a server share one blocking reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

from contrafact.v1 import job_pb2
from redis.asyncio import Redis
from redis.exceptions import RedisError

from servers.platform import telemetry
from servers.platform.settings import Settings
from servers.platform.tasks import Background
from servers.storage.keys import job_events

BEGINNING = "0-0"
KEPT_EVENTS = 10_000
KEPT_SECONDS = 7 * 24 * 3600
_BLOCK_MS = 200  # also how soon a newly watched job joins the reader


def connect(settings: Settings) -> Redis:
    """A client of Redis; close it with ``await redis.aclose()``."""
    return Redis.from_url(settings.redis_url, socket_timeout=10, socket_connect_timeout=5, health_check_interval=15)


class JobEvents:
    """Writes and reads the events of jobs."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def publish(self, job_id: UUID, event: job_pb2.JobEvent) -> None:
        """Append an event; its cursor and time are given by the stream. Losing Redis loses no more than this."""
        key = job_events(job_id)
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.xadd(key, {"event": event.SerializeToString()}, maxlen=KEPT_EVENTS, approximate=True)
                pipe.expire(key, KEPT_SECONDS)
                await pipe.execute()
        except (RedisError, OSError) as error:
            telemetry.log().warning("event not published", error=type(error).__name__)

    async def read(self, job_id: UUID, after: str, limit: int = 500) -> list[job_pb2.JobEvent]:
        """Events after the cursor ``after``, oldest first; none when Redis is away."""
        try:
            entries = await self._redis.xrange(job_events(job_id), min=f"({after}", count=limit)
        except (RedisError, OSError) as error:
            telemetry.log().warning("events not read", error=type(error).__name__)
            return []
        events = []
        for cursor, fields in cast(list[tuple[bytes, dict[bytes, bytes]]], entries):
            event = job_pb2.JobEvent.FromString(fields[b"event"])
            event.cursor = cursor.decode()
            event.event_time.FromMilliseconds(int(event.cursor.partition("-")[0]))
            events.append(event)
        return events


class EventHub(Background):
    """Wakes listeners when their job has new events; used as a context manager."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._watched: dict[UUID, _Watched] = {}
        self._wanted = asyncio.Event()

    @asynccontextmanager
    async def listen(self, job_id: UUID, after: str) -> AsyncIterator[Listener]:
        """Listen to a job from the cursor ``after`` on, for as long as the context lasts."""
        watched = self._watched.setdefault(job_id, _Watched(after))
        watched.listeners += 1
        self._wanted.set()
        try:
            yield Listener(watched)
        finally:
            watched.listeners -= 1
            if not watched.listeners:
                del self._watched[job_id]

    async def _work(self) -> None:
        while True:
            if not self._watched:
                self._wanted.clear()
                await self._wanted.wait()
            keys = {job_events(job).encode(): watched for job, watched in self._watched.items()}
            cursors: Any = {key: watched.cursor for key, watched in keys.items()}
            try:
                streams: Any = await self._redis.xread(cursors, count=1000, block=_BLOCK_MS)
            except (RedisError, OSError):
                await asyncio.sleep(1)  # listeners look into PostgreSQL by themselves meanwhile
                continue
            for key, entries in streams.items() if isinstance(streams, dict) else streams or ():
                if entries:
                    keys[key].advance(_last_cursor(entries))


def _last_cursor(entries: Any) -> str:
    last = entries[-1]
    while isinstance(last, list):  # RESP3 nests one level deeper than RESP2
        last = last[-1]
    return cast(bytes, last[0]).decode()


class _Watched:
    """A job that somebody listens to."""

    def __init__(self, cursor: str) -> None:
        self.cursor = cursor
        self.listeners = 0
        self.news = asyncio.Event()

    def advance(self, cursor: str) -> None:
        self.cursor = cursor
        self.news.set()
        self.news = asyncio.Event()


class Listener:
    """One listener of one job."""

    def __init__(self, watched: _Watched) -> None:
        self._watched = watched
        self._news = watched.news

    async def wait(self, timeout: float) -> bool:
        """Wait for events newer than at the last call, at most ``timeout`` seconds; returns whether there are."""
        try:
            async with asyncio.timeout(timeout):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news = self._watched.news
        return True
