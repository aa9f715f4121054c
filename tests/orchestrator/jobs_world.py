"""Jobs on a real PostgreSQL and Valkey, with no worker: tests say what happens to them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from contrafact.v1 import job_pb2
from redis.asyncio import Redis

from servers.orchestrator.jobs.events import JobEvents
from servers.orchestrator.jobs.events import connect as connect_redis
from servers.orchestrator.jobs.hub import EventHub
from servers.orchestrator.jobs.load import Load
from servers.orchestrator.jobs.store import JobStore, NewJob
from servers.orchestrator.jobs.views import JobViews
from servers.platform.settings import Settings
from servers.storage.database import Pool, Row, connect

OWNER = "somebody"


class CountingPool:
    """A pool that counts its statements."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.statements = 0

    def __getattr__(self, name: str) -> Any:
        if name in ("fetch", "fetchrow", "fetchval", "execute"):
            self.statements += 1
        return getattr(self._pool, name)


class World:
    """An API server's parts, and ways to make things happen to jobs."""

    def __init__(self, pool: Pool, redis: Redis, settings: Settings) -> None:
        self.pool, self.redis = pool, redis
        self.counting = CountingPool(pool)
        counted = cast(Pool, self.counting)
        self.store = JobStore(counted)
        self.events = JobEvents(redis, settings)
        self.load = Load(pool, settings)
        self.views = JobViews(counted, self.store, self.load)
        self.hub = EventHub(self.events, self.views)
        self.tracks: dict[float, uuid.UUID] = {}

    async def track(self, seconds: float) -> uuid.UUID:
        """A track of that length."""
        track, sha256 = uuid.uuid4(), hashlib.sha256(uuid.uuid4().bytes).hexdigest()
        await self.pool.execute(
            """INSERT INTO recordings (sha256, size_bytes, object_key, container, codec, sample_rate, channels,
                                       frames, mean, std, peak)
               VALUES ($1, 1, 'key', 'wav', 'pcm', 1000, 2, $2, 0, 1, 1)""",
            sha256,
            round(seconds * 1000),
        )
        await self.pool.execute("INSERT INTO tracks VALUES ($1, $2, 'a track', $3)", track, OWNER, sha256)
        return track

    async def job(self, *, seconds: float = 10.0, **changes: Any) -> Row:
        """A job on audio of that length, waiting."""
        if seconds not in self.tracks:
            self.tracks[seconds] = await self.track(seconds)
        values: dict[str, Any] = {
            "owner": OWNER,
            "request_id": uuid.uuid4(),
            "kind": "SEPARATE",
            "priority": "INTERACTIVE",
            "track_id": self.tracks[seconds],
            "spec": {"stems": ["STEM_KIND_VOCALS"]},
            "headers": {},
        }
        row, _ = await self.store.create(NewJob(**(values | changes)))
        return row

    async def set(self, job: Row, **values: Any) -> Row:
        """Write columns of a job; returns it as it is then."""
        columns = ", ".join(f"{name} = ${number}" for number, name in enumerate(values, 2))
        row = await self.pool.fetchrow(
            f"UPDATE jobs SET {columns} WHERE id = $1 RETURNING *", job["id"], *values.values()
        )
        assert row is not None
        return row

    async def end(self, job: Row, state: str = "SUCCEEDED") -> Row:
        """Let a job end, telling nobody."""
        return await self.set(job, state=state)

    async def progress(self, job: Row, *fractions: float) -> None:
        """Publish progress."""
        for fraction in fractions:
            await self.events.publish([job["id"]], job_pb2.JobEvent(progress=job_pb2.Progress(fraction=fraction)))

    async def tell(self, job: Row) -> None:
        """Publish the job as it is."""
        row = await self.store.get(job["id"])
        assert row is not None
        await self.events.publish([job["id"]], job_pb2.JobEvent(job=await self.views.job(row)))

    async def commands(self) -> dict[str, int]:
        """How often Redis was asked what since the last reset."""
        return {name: numbers["calls"] for name, numbers in (await self.redis.info("commandstats")).items()}


@asynccontextmanager
async def world_of(settings: Settings) -> AsyncIterator[World]:
    """A world without jobs, whose hub works."""
    pool, redis = await connect(settings), connect_redis(settings)
    try:
        await pool.execute("DELETE FROM jobs")
        await redis.flushall()
        world = World(pool, redis, settings)
        async with world.hub:
            yield world
        assert not world.hub._feeds
    finally:
        await redis.aclose()
        await pool.close()
