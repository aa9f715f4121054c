"""What it costs to ask the queue for something, by how much waits in it."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from servers.local import Stack
from servers.orchestrator.jobs.load import Load
from servers.orchestrator.jobs.queue import WAKING, JobQueue
from servers.orchestrator.jobs.store import JobStore
from servers.orchestrator.jobs.views import JobViews
from servers.platform.settings import Settings
from servers.storage.database import Pool, Row
from tests.bench import backlog
from tests.bench.ledger import Ledger, milliseconds, stores, table, tree_cpu
from tests.bench.throughput import callers

DEPTHS = [int(text) for text in os.environ.get("DEPTHS", "0,1000,10000,100000").split(",")]
CALLS = int(os.environ.get("CALLS", "300"))
RARE_CALLS = 5  # of what looks at the whole queue, once in a while
LOCK = "separate:the-same"
OWNERS = {"one owner": 1, "1000 owners": 1000, "one lock": 1, "one lock, held": 1}

Figures = dict[str, Any]


class Clerk:
    """Asks what a worker, the API and the dispatcher ask, and times it."""

    def __init__(self, stack: Stack, settings: Settings, pool: Pool, track: UUID) -> None:
        self._postgres = stack.processes["postgres"].pid
        self._settings = settings
        self._pool = pool
        self._track = track
        self._store = JobStore(pool)
        self._load = Load(pool, settings)
        self._views = JobViews(pool, self._store, self._load)

    async def _timed(self, call: Callable[[], Awaitable[object]], times: int) -> Figures:
        seconds, cpu = [], tree_cpu(self._postgres)
        for _ in range(times):
            began = time.perf_counter()
            await call()
            seconds.append(time.perf_counter() - began)
        return {**milliseconds(seconds), "postgres_cpu_ms": round(1e3 * (tree_cpu(self._postgres) - cpu) / times, 3)}

    async def claim(self, lock: str | None = None, *, background: bool = True) -> Row | None:
        """As a worker does that has room for everything, or for interactive jobs alone."""
        return await self._store.claim(
            [backlog.KIND],
            background=background,
            worker="bench",
            ageing_seconds=self._settings.background_ageing_seconds,
            lock=lock,
        )

    async def all(self) -> Figures:
        """Each of the questions; in the end fewer jobs wait."""
        store, claimed = self._store, []

        async def create() -> None:
            await store.create(backlog.new(self._track, priority="BACKGROUND"))

        async def claim() -> None:
            if row := await self.claim():
                claimed.append(row)

        async def beat() -> None:
            await store.beat(claimed[-1]["id"], claimed[-1]["attempt"], "SEPARATE", 0.5, 1.0)

        async def finish() -> None:
            row = claimed.pop()
            await store.finish(row["id"], row["attempt"], "SUCCEEDED")

        found = {"due": await self._timed(lambda: store.due(WAKING), RARE_CALLS)}
        found["lost"] = await self._timed(lambda: store.requeue_lost(60, 5), RARE_CALLS)
        found["load"] = await self._timed(self._load.refresh, RARE_CALLS)
        if last := await self._pool.fetchval("SELECT id FROM jobs WHERE state = 'QUEUED' ORDER BY turn DESC LIMIT 1"):
            found["look"] = await self._timed(lambda: self._views.look_up([last]), RARE_CALLS)
        # All that wait are background jobs.
        found["claim nothing"] = await self._timed(lambda: self.claim(background=False), RARE_CALLS)
        # As the last of those that wait is claimed, a claim costs what it costs to find nothing.
        found["claim"] = await self._timed(claim, CALLS)
        if claimed:
            found["beat"] = await self._timed(beat, CALLS)
            found["finish"] = await self._timed(finish, len(claimed))
        found["create"] = await self._timed(create, CALLS)
        return found


async def claims_at_once(clerk: Clerk, count: int, at_once: int) -> float:
    """Claims a second by so many callers at once."""
    rows: list[Row | None] = []

    async def claim() -> None:
        rows.append(await clerk.claim())

    seconds = await callers(claim, count, at_once)
    if sum(row is not None for row in rows) != count:
        raise RuntimeError(f"{count} claims of {len(rows)} were asked for, {sum(map(bool, rows))} got a job")
    return count / seconds


async def prepared(clerk: Clerk, pool: Pool, track: UUID, depth: int, name: str) -> None:
    """So many jobs that wait, and no others."""
    await backlog.clear(pool)
    lock = LOCK if name.startswith("one lock") else None
    await backlog.fill(pool, track, depth, owners=OWNERS[name], lock=lock)
    if name.endswith("held") and depth:
        await clerk.claim()


async def bytes_of_a_job(stack: Stack, settings: Settings, pool: Pool, track: UUID, count: int) -> Figures:
    """Bytes in PostgreSQL of a job that waits, and in Redis of its ticket."""
    await backlog.clear(pool)
    async with Ledger(stack) as ledger, JobQueue(settings) as queue:
        rows, indexes = await ledger.table_bytes("jobs")
        redis = await ledger.redis_bytes()
        store = JobStore(pool)

        async def create() -> None:
            row, _ = await store.create(backlog.new(track))
            await queue.send(f"{row['id']}-0")

        seconds = await callers(create, count)
        more_rows, more_indexes = await ledger.table_bytes("jobs")
        more_redis = await ledger.redis_bytes()
    return {
        "created_per_s": round(count / seconds, 1),
        "postgres_rows": round((more_rows - rows) / count),
        "postgres_indexes": round((more_indexes - indexes) / count),
        "redis": round((more_redis - redis) / count),
    }


async def measured(folder: Path) -> Figures:
    """Cost of each question, by what waits; claims a second; bytes of a job that waits."""
    async with stores(folder) as (stack, settings, pool):
        track = await backlog.track(pool)
        clerk = Clerk(stack, settings, pool, track)
        found: Figures = {}
        for name in OWNERS:
            for depth in DEPTHS:
                if depth or name == "one owner":
                    await prepared(clerk, pool, track, depth, name)
                    found[f"{depth} of {name}"] = await clerk.all()
        at_once = {}
        for number in (1, 4, 16):
            await prepared(clerk, pool, track, max(DEPTHS[-1], 1000), "1000 owners")
            at_once[f"{number}"] = round(await claims_at_once(clerk, min(CALLS * 3, 900), number), 1)
        size = await bytes_of_a_job(stack, settings, pool, track, min(CALLS * 10, 10_000))
    questions = ("create", "claim", "claim nothing", "beat", "finish", "due", "lost", "load", "look")
    cells = {name: [entry.get(each, {}).get("median_ms", "-") for each in questions] for name, entry in found.items()}
    table([["median ms, waiting", *questions], *([name, *row] for name, row in cells.items())])
    print(f"  claims/s by callers at once: {at_once}; of a job that waits: {size}", flush=True)
    return {"calls": CALLS, "by_waiting": found, "claims_per_s_by_callers": at_once, "of_a_waiting_job": size}
