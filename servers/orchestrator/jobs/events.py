"""Events of jobs: a Redis stream each, and a signal to all when there is a result.

The stream is a convenience: what must not be lost (states, stems, live pieces) is in PostgreSQL first,
and whoever watches is told what is there, too (see ``orchestrator.jobs.hub``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from contrafact.v1 import job_pb2
from redis.asyncio import Redis
from redis.exceptions import RedisError

from servers.platform import telemetry
from servers.platform.settings import Settings
from servers.storage.keys import job_events, ready_channel

BEGINNING = "0-0"
KEPT_EVENTS = 10_000
_READ_SECONDS = 3.0
_WRITE_SECONDS = 1.0
_AWAY_SECONDS = 2.0
_SCANNED_SECONDS = 600
_READS = 32  # at once: each takes a connection

AWAY: tuple[type[Exception], ...] = (RedisError, OSError)  # TimeoutError is an OSError


def connect(settings: Settings) -> Redis:
    """A client of Redis; close it with ``await redis.aclose()``."""
    return Redis.from_url(settings.redis_url, socket_timeout=10, socket_connect_timeout=5, health_check_interval=15)


def age(cursor: str) -> tuple[int, int]:
    """By what cursors of one stream are ordered: Redis gives each event a later one."""
    milliseconds, _, number = cursor.partition("-")
    return int(milliseconds), int(number)


class JobEvents:
    """Writes and reads the events of jobs."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._kept_seconds = round(settings.event_retention_days * 24 * 3600)
        self._away_until = 0.0
        self._reads = asyncio.Semaphore(_READS)

    async def publish(self, job_ids: Sequence[UUID], event: job_pb2.JobEvent) -> None:
        """Append an event to the streams of jobs, which give it a cursor and the time; without Redis it is lost."""
        if time.monotonic() < self._away_until:
            return
        data = event.SerializeToString()
        kept_seconds = min(self._kept_seconds, _SCANNED_SECONDS) if _of_a_scan(event.job) else self._kept_seconds
        try:
            async with asyncio.timeout(_WRITE_SECONDS), self._redis.pipeline(transaction=False) as pipe:
                for key in map(job_events, job_ids):
                    pipe.xadd(key, {"event": data}, maxlen=KEPT_EVENTS, approximate=True)
                    pipe.expire(key, kept_seconds)
                await pipe.execute()
        except AWAY as error:
            # What makes events must not wait for a Redis that hangs, again and again.
            self._away_until = time.monotonic() + _AWAY_SECONDS
            telemetry.log().warning("event not published", error=type(error).__name__)

    async def ready(self, kind: str, track_id: UUID | None, job_id: UUID) -> None:
        """Signal to all who listen that a job of this kind has succeeded; who does not listen never hears of it.

        Args:
            kind: As in the table of jobs.
            track_id: The track; None: it was deleted, and nobody can be listening for it.
            job_id: The job, whose name "jobs/{id}" is the message.
        """
        if track_id is None:
            return
        try:
            async with asyncio.timeout(_READ_SECONDS):
                await self._redis.publish(ready_channel(kind, track_id), f"jobs/{job_id}")
        except AWAY as error:
            telemetry.log().warning("ready not signalled", error=type(error).__name__)

    async def read(self, job_id: UUID, after: str) -> list[job_pb2.JobEvent]:
        """Some events after the cursor ``after``, oldest first; raises one of AWAY."""
        async with asyncio.timeout(_READ_SECONDS), self._reads:
            return _events(await self._redis.xrange(job_events(job_id), min=f"({after}", count=500))

    async def newest(self, job_id: UUID, limit: int) -> list[job_pb2.JobEvent]:
        """The last ``limit`` events, oldest first; raises one of AWAY."""
        async with asyncio.timeout(_READ_SECONDS), self._reads:
            return _events(await self._redis.xrevrange(job_events(job_id), count=limit))[::-1]

    async def cursors(self, job_ids: Sequence[UUID]) -> dict[UUID, str]:
        """The cursor of each job's last event, BEGINNING where there is none; raises one of AWAY."""
        async with asyncio.timeout(_READ_SECONDS), self._reads, self._redis.pipeline(transaction=False) as pipe:
            for job in job_ids:
                pipe.xrevrange(job_events(job), count=1)
            answers: list[Any] = await pipe.execute()
        return {
            job: entries[0][0].decode() if entries else BEGINNING for job, entries in zip(job_ids, answers, strict=True)
        }

    async def wait(self, after: Mapping[UUID, str], milliseconds: int) -> dict[UUID, list[job_pb2.JobEvent]]:
        """Events of many jobs, of each after a cursor; waits for the first of them. Raises one of AWAY."""
        keys = {job_events(job).encode(): job for job in after}
        cursors: Any = {key: after[job] for key, job in keys.items()}
        streams: Any = await self._redis.xread(cursors, count=100, block=milliseconds)
        return {keys[key]: _events(entries) for key, entries in streams}


def _of_a_scan(job: job_pb2.Job) -> bool:
    """Whether a job has ended that is one of very many, whose events hardly anybody reads: the end is known without."""
    many = job.kind in (job_pb2.JOB_KIND_ANALYZE, job_pb2.JOB_KIND_IMPORT)
    return many and job.priority == job_pb2.PRIORITY_BACKGROUND and job.HasField("end_time")


def _events(entries: Any) -> list[job_pb2.JobEvent]:
    events = []
    for cursor, fields in entries:
        event = job_pb2.JobEvent.FromString(fields[b"event"])
        event.cursor = cursor.decode()
        event.event_time.FromMilliseconds(age(event.cursor)[0])
        events.append(event)
    return events
