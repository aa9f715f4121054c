"""A worker that has nothing to do but to take work: ``python -m tests.bench.bare jobs|tasks``.

``jobs``: a whole runner whose pipeline returns at once. ``tasks``: streaQ alone, whose task returns at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Any

from streaq import Worker

from servers.orchestrator.jobs.events import JobEvents
from servers.orchestrator.jobs.events import connect as connect_redis
from servers.orchestrator.jobs.queue import JobQueue, consume
from servers.orchestrator.jobs.runner import JobRun, Runner
from servers.orchestrator.jobs.store import JobStore
from servers.platform import telemetry
from servers.platform.settings import Settings, settings
from servers.storage.database import connect
from tests.bench.backlog import KIND

READY = "ready"


def tasks(config: Settings) -> tuple[Worker[None], Any]:
    """streaQ as it is, with as many slots as a worker of ours, and its task."""
    worker: Worker[None] = Worker(
        redis_url=config.redis_url,
        queue_name="bare",
        concurrency=config.worker_concurrency + config.interactive_slots,
        serializer=json.dumps,
        deserializer=json.loads,
    )

    @worker.task(ttl=0, name="nothing", silent=True)
    async def nothing() -> None:
        pass

    return worker, nothing


async def run_jobs(config: Settings) -> None:
    """Run jobs that are done at once."""

    async def nothing(run: JobRun) -> None:
        pass

    pool, redis = await connect(config), connect_redis(config)
    try:
        async with JobQueue(config) as queue:
            runner = Runner({KIND: nothing}, JobStore(pool), JobEvents(redis, config), queue, config)
            ready = asyncio.Event()
            consuming = asyncio.create_task(consume(config, runner.serve, ready))
            await ready.wait()
            print(READY, flush=True)
            await consuming
    finally:
        await redis.aclose()
        await pool.close()


async def run_tasks(config: Settings) -> None:
    """Run tasks that are done at once."""
    logging.getLogger("streaq").setLevel(logging.ERROR)
    worker, _ = tasks(config)
    print(READY, flush=True)
    await worker.run_async()


if __name__ == "__main__":
    config = settings()
    telemetry.configure(config, "worker")
    asyncio.run({"jobs": run_jobs, "tasks": run_tasks}[sys.argv[1]](config))
