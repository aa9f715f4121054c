"""Jobs that are done at once, through everything but a model, against tasks of streaQ that do nothing."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from servers.local import Stack
from servers.orchestrator.jobs.queue import JobQueue
from servers.orchestrator.jobs.store import JobStore
from servers.platform.settings import Settings
from servers.storage.database import Pool
from tests.bench import backlog, bare
from tests.bench.common import ROOT
from tests.bench.ledger import Ledger, Reading, stores, table, tree_cpu

COUNT = int(os.environ.get("JOBS", "2000"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
WORKERS = (1, 2, 4)
CALLERS = 8
_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 600.0

Work = Callable[[], Awaitable[None]]


@asynccontextmanager
async def workers(what: str, count: int, stack: Stack) -> AsyncIterator[list[int]]:
    """So many processes of ``tests.bench.bare``, which are killed in the end; their ids."""
    environment = {**os.environ, **stack.environment, "CONTRAFACT_LOG_LEVEL": "error"}
    command = (sys.executable, "-m", "tests.bench.bare", what)
    children: list[asyncio.subprocess.Process] = []
    try:
        for _ in range(count):
            child = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE
            )
            children.append(child)
        async with asyncio.timeout(60):
            for child in children:
                assert child.stdout is not None
                if bare.READY.encode() not in await child.stdout.readline():
                    raise RuntimeError(f"a worker of {what} did not start")
        await asyncio.sleep(2)  # until each has its connections
        yield [child.pid for child in children]
    finally:
        for child in children:
            if child.returncode is None:
                child.kill()
        await asyncio.gather(*(child.wait() for child in children))


async def callers(work: Work, count: int, at_once: int = CALLERS) -> float:
    """Do something so many times, by some callers at once; seconds."""
    left = iter(range(count))

    async def caller() -> None:
        for _ in left:
            await work()

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(at_once)))
    return time.perf_counter() - began


async def until(done: Callable[[], Awaitable[bool]]) -> None:
    """Wait for it."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not await done():
            await asyncio.sleep(_POLL_SECONDS)


async def of_jobs(stack: Stack, settings: Settings, pool: Pool, track: UUID, count: int) -> tuple[float, float]:
    """Seconds from the first creation to the end of the last job, and CPU seconds of the workers meanwhile."""
    await backlog.clear(pool)
    store = JobStore(pool)
    async with JobQueue(settings) as queue, workers("jobs", count, stack) as pids:

        async def create() -> None:
            row, _ = await store.create(backlog.new(track))
            await queue.send(f"{row['id']}-0")

        async def done() -> bool:
            return not await pool.fetchval("SELECT 1 FROM jobs WHERE state IN ('QUEUED', 'RUNNING') LIMIT 1")

        cpu, began = sum(map(tree_cpu, pids)), time.perf_counter()
        await callers(create, COUNT)
        await until(done)
        seconds = time.perf_counter() - began
        cpu = sum(map(tree_cpu, pids)) - cpu
    ended = await pool.fetchval("SELECT count(*) FROM jobs WHERE state = 'SUCCEEDED' AND attempt = 1")
    if ended != COUNT:
        raise RuntimeError(f"{ended} of {COUNT} jobs succeeded at once")
    return seconds, cpu


async def of_tasks(stack: Stack, settings: Settings, count: int) -> float:
    """The same of streaQ's tasks."""
    worker, nothing = bare.tasks(settings)
    async with worker, workers("tasks", count, stack):

        async def create() -> None:
            await nothing.enqueue()

        async def done() -> bool:
            return await worker.queue_size() == 0

        began = time.perf_counter()
        await callers(create, COUNT)
        await until(done)
        return time.perf_counter() - began


async def counted(stack: Stack, settings: Settings, pool: Pool, track: UUID) -> dict[str, Any]:
    """What one job costs the stores, and its worker, the only one; with the little that these do besides."""
    async with Ledger(stack) as ledger:
        before: Reading = await ledger.read()
        _, cpu = await of_jobs(stack, settings, pool, track, 1)
        cost = (await ledger.read()).since(before, COUNT)
    cost["cpu_ms"]["worker"] = round(1e3 * cpu / COUNT, 3)
    return cost


async def measured(folder: Path) -> dict[str, Any]:
    """Rates by number of workers, both sides in turn; and what a job costs."""
    async with stores(folder) as (stack, settings, pool):
        track = await backlog.track(pool)
        found: dict[str, Any] = {}
        for number in WORKERS:
            rates: dict[str, list[float]] = {"jobs": [], "streaq": []}
            for _ in range(ROUNDS):
                seconds, _ = await of_jobs(stack, settings, pool, track, number)
                rates["jobs"].append(COUNT / seconds)
                rates["streaq"].append(COUNT / await of_tasks(stack, settings, number))
            ours, theirs = (round(statistics.median(rates[side]), 1) for side in ("jobs", "streaq"))
            found[f"{number}"] = {"jobs_per_s": ours, "streaq_per_s": theirs, "ratio": round(ours / theirs, 3)}
        cost = await counted(stack, settings, pool, track)
    rows = [[name, *entry.values()] for name, entry in found.items()]
    table([["workers", "jobs/s", "streaQ tasks/s", "ratio"], *rows])
    print(f"  of each job: {cost}", flush=True)
    slots = settings.worker_concurrency + settings.interactive_slots
    return {"jobs": COUNT, "callers": CALLERS, "slots_of_a_worker": slots, "by_workers": found, "of_each_job": cost}
