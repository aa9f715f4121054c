"""The worker: takes jobs from the queue and runs them. ``python -m servers.orchestrator.worker``"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack

from servers.inference.keeper import ModelKeeper
from servers.inference.separation import Separator
from servers.inference.triton import Triton
from servers.orchestrator.jobs.events import JobEvents
from servers.orchestrator.jobs.events import connect as connect_redis
from servers.orchestrator.jobs.queue import JobQueue, consume
from servers.orchestrator.jobs.reconcile import Reconciler
from servers.orchestrator.jobs.runner import Runner
from servers.orchestrator.jobs.store import JobStore
from servers.orchestrator.pipelines.separate import SeparatePipeline
from servers.platform import telemetry
from servers.platform.scratch import scratch
from servers.platform.server import until_signalled
from servers.platform.settings import Settings, settings
from servers.storage.database import connect
from servers.storage.objects import ObjectStore


async def work(config: Settings) -> None:
    """Work until SIGTERM or SIGINT; running jobs are then handed back to the queue."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(scratch(config.temporary_folder))
        config = config.model_copy(update={"temporary_folder": folder})
        pool = await connect(config)
        stack.push_async_callback(pool.close)
        objects = ObjectStore(config)
        stack.push_async_callback(objects.close)
        redis = connect_redis(config)
        stack.push_async_callback(redis.aclose)
        queue = await stack.enter_async_context(JobQueue(config))
        triton = await stack.enter_async_context(Triton(config))
        keeper = await stack.enter_async_context(ModelKeeper(triton, config.model, config))

        store, events = JobStore(pool), JobEvents(redis)
        separate = SeparatePipeline(pool, objects, Separator(triton, keeper, config), keeper, config)
        runner = Runner({"SEPARATE": separate}, store, events, queue, config)
        ready = asyncio.Event()
        tasks = [
            asyncio.create_task(consume(config, runner.handle, ready)),
            asyncio.create_task(Reconciler(pool, objects, store, queue, config).run()),
        ]
        await ready.wait()
        telemetry.log().info("ready")
        stopping = asyncio.create_task(until_signalled())
        try:
            # A background task never ends by itself: if one does, the worker is broken and must say so.
            await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await runner.drain()
            stopping.cancel()
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result


if __name__ == "__main__":
    telemetry.configure(settings(), "worker")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(work(settings()))
