"""Scans on real stores, with a worker of which tests say when it does what; its analyses take no time."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from contrafact.v1 import analysis_pb2
from redis.asyncio import Redis

from servers.analyzer.version import ANALYZER
from servers.media.probe import TrackFacts, probe
from servers.orchestrator.analyses.store import AnalysisStore, Made
from servers.orchestrator.jobs.events import JobEvents
from servers.orchestrator.jobs.events import connect as connect_redis
from servers.orchestrator.jobs.load import Load
from servers.orchestrator.jobs.queue import JobQueue
from servers.orchestrator.jobs.runner import JobFailure, JobRun, Pipeline, Runner
from servers.orchestrator.jobs.store import JobStore
from servers.orchestrator.pipelines.importing import ImportPipeline
from servers.orchestrator.scans.feeder import Feeder
from servers.orchestrator.scans.listing import Lister
from servers.orchestrator.scans.store import ScanStore
from servers.orchestrator.tracks.register import NewRecording, NewTrack, Registrar
from servers.platform.settings import Settings
from servers.storage.database import Connection, Pool, Row, connect
from servers.storage.objects import ObjectStore
from tests.media.media_builders import wav_bytes

OWNER = "local"  # who calls, as far as the API knows


def recording(seed: int | None = None) -> bytes:
    """A short WAV; without a seed, one like no other."""
    seed = uuid.uuid4().int % 2**32 if seed is None else seed
    return wav_bytes(np.random.default_rng(seed).integers(-3000, 3000, 400, dtype=np.int16).tobytes())


async def _probe(path: Path) -> TrackFacts:
    return probe(path, max_seconds=60)


async def _nothing(connection: Connection, track_id: uuid.UUID) -> None:
    """What else is to be written."""


@dataclass
class World:
    """A worker's parts, and ways to make things happen."""

    pool: Pool
    redis: Redis
    objects: ObjectStore
    queue: JobQueue
    settings: Settings
    failing: dict[str, JobFailure] = field(default_factory=dict)  # analyses, by the name of the track

    def __post_init__(self) -> None:
        self.store = JobStore(self.pool)
        self.scans = ScanStore(self.pool, self.store)
        self.load = Load(self.pool, self.settings)
        self.events = JobEvents(self.redis, self.settings)
        self.lister = Lister(self.pool, self.objects)
        self.imports = ImportPipeline(self.pool, self.objects, self.settings)
        self.analyses = AnalysisStore(self.pool)
        self.analysed: list[str] = []  # digests, as often as it was done

    def feeder(self, **changes: Any) -> Feeder:
        """One of the workers', with other settings."""
        settings = self.settings.model_copy(update=changes)
        return Feeder(self.pool, self.store, self.queue, self.load, settings)

    def runner(self, *kinds: str) -> Runner:
        """What does jobs of these kinds; none: all."""
        pipelines: dict[str, Pipeline] = {"IMPORT": self.imports, "ANALYZE": self.analyze}
        pipelines = {kind: pipeline for kind, pipeline in pipelines.items() if not kinds or kind in kinds}
        return Runner(pipelines, self.store, self.events, self.queue, self.settings)

    async def analyze(self, run: JobRun) -> None:
        """An analysis of nothing, stored as one is."""
        row = await self.pool.fetchrow("SELECT sha256, display_name FROM tracks WHERE id = $1", run.row["track_id"])
        if row is None:
            raise JobFailure("TRACK_DELETED", "the track was deleted")
        if await self.analyses.is_made(row["sha256"]):
            return
        await run.stage("ANALYZE")
        if failure := self.failing.get(row["display_name"]):
            raise failure
        self.analysed.append(row["sha256"])
        async with self.pool.acquire() as connection, connection.transaction():
            await run.store.hold(connection, run.id, run.attempt)
            await self.analyses.save(connection, row["sha256"], Made(ANALYZER, analysis_pb2.Features()))

    async def step(self, *kinds: str) -> None:
        """One round of everything, and all jobs of these kinds."""
        await self.lister.round()
        await self.feeder().round()
        await self.runner(*kinds).serve()

    async def until(self, scan: Row) -> Row:
        """Rounds until a scan has ended; as it is then."""
        async with asyncio.timeout(100):
            while True:
                row = await self.pool.fetchrow("SELECT * FROM scans WHERE id = $1", scan["id"])
                assert row is not None
                if row["ended_at"] is not None:
                    return row
                await self.step()

    async def scan(self, request_id: uuid.UUID | None = None, owner: str = OWNER, **spec: Any) -> Row:
        """A scan, begun."""
        request = request_id or uuid.uuid4()
        return await self.scans.open(owner, request, {"request_id": str(request), **spec}, {})

    async def named(self, *tracks: uuid.UUID, complete: bool = True) -> Row:
        """A scan of these tracks."""
        scan = await self.scan()
        await self.scans.name(scan, tracks)
        if complete:
            await self.scans.complete(scan["id"])
        return scan

    async def track(self, *, owner: str = OWNER, name: str = "a track", data: bytes | None = None) -> uuid.UUID:
        """A track that nobody has analysed."""
        data = data or recording()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            path.write_bytes(data)
            new = NewRecording(path, hashlib.sha256(data).hexdigest(), len(data), _probe)
            registrar = Registrar(self.pool, self.objects)
            facts = await registrar.examine(new)
            track, _ = await registrar.register(NewTrack(owner, name, new), facts, _nothing)
        return track

    @asynccontextmanager
    async def deleting(self, track: uuid.UUID) -> AsyncIterator[None]:
        """A track that is gone when the context ends."""
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute("DELETE FROM tracks WHERE id = $1", track)
            yield

    async def blocked(self) -> None:
        """Wait until somebody waits for a lock."""
        async with asyncio.timeout(100):
            while not await self.pool.fetchval("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                await asyncio.sleep(0.01)

    async def items(self, scan: Row) -> list[Row]:
        """Its items, as they came."""
        return await self.pool.fetch("SELECT * FROM scan_items WHERE scan_id = $1 ORDER BY number", scan["id"])

    async def states(self, scan: Row) -> Counter[str]:
        """How many of its items have which state, and that it says so itself."""
        states = Counter(str(item["state"]) for item in await self.items(scan))
        row = await self.pool.fetchrow("SELECT * FROM scans WHERE id = $1", scan["id"])
        assert row is not None
        counts = {name: row[name.lower()] for name in ("EXISTING", "ANALYZED", "SKIPPED", "FAILED")}
        assert counts == {name: states[name] for name in counts}
        assert row["total"] == states.total()
        return states

    async def digests(self, prefix: str) -> dict[str, str]:
        """The objects below a prefix, by key."""
        found = {}
        for key in await self.objects.find(prefix):
            found[key] = hashlib.sha256(b"".join([data async for data in self.objects.read(key)])).hexdigest()
        return found


@asynccontextmanager
async def world_of(settings: Settings) -> AsyncIterator[World]:
    """A world without scans, jobs and tracks."""
    pool, redis, objects = await connect(settings), connect_redis(settings), ObjectStore(settings)
    try:
        await pool.execute("TRUNCATE recordings, tracks, jobs, scans, chores CASCADE")
        await redis.flushall()
        await objects.ensure_bucket()
        await objects.delete_prefix("imports/")
        async with JobQueue(settings) as queue:
            yield World(pool, redis, objects, queue, settings)
    finally:
        await objects.close()
        await redis.aclose()
        await pool.close()
