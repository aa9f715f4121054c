"""The public API server: ``python -m servers.orchestrator.api``"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from contextlib import AsyncExitStack

from contrafact.v1 import job_pb2, job_pb2_grpc, stem_pb2, stem_pb2_grpc, track_pb2, track_pb2_grpc

from servers.inference.keeper import PROBE_TIMEOUT
from servers.inference.triton import Triton, TritonError
from servers.orchestrator.api.jobs import JobService
from servers.orchestrator.api.stems import StemService
from servers.orchestrator.api.tracks import TrackService
from servers.orchestrator.api.uploads import Uploads
from servers.orchestrator.jobs.events import EventHub, JobEvents
from servers.orchestrator.jobs.events import connect as connect_redis
from servers.orchestrator.jobs.queue import JobQueue
from servers.orchestrator.jobs.store import JobStore
from servers.platform import telemetry
from servers.platform.scratch import scratch
from servers.platform.server import Server, Service, until_signalled
from servers.platform.settings import Settings, settings
from servers.storage.database import connect
from servers.storage.objects import ObjectStore
from servers.storage.outages import OUTAGES

STEM_SERVICE = stem_pb2.DESCRIPTOR.services_by_name["StemService"].full_name
MODEL_CHECK_SECONDS = 2.0


async def serve(config: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(scratch(config.temporary_folder))
        config = config.model_copy(update={"temporary_folder": folder})
        pool = await connect(config)
        stack.push_async_callback(pool.close)
        objects = ObjectStore(config)
        stack.push_async_callback(objects.close)
        await objects.ensure_bucket()
        redis = connect_redis(config)
        stack.push_async_callback(redis.aclose)
        queue = await stack.enter_async_context(JobQueue(config))
        hub = await stack.enter_async_context(EventHub(redis))
        triton = await stack.enter_async_context(Triton(config))

        store, events = JobStore(pool), JobEvents(redis)
        tracks = TrackService(pool, objects, store, Uploads(pool, objects, config))
        stems = StemService(pool, objects, store, queue, hub, config)
        jobs = JobService(store, events, hub)
        server = Server(
            config,
            [
                Service(
                    track_pb2.DESCRIPTOR.services_by_name["TrackService"].full_name,
                    functools.partial(track_pb2_grpc.add_TrackServiceServicer_to_server, tracks),
                ),
                Service(STEM_SERVICE, functools.partial(stem_pb2_grpc.add_StemServiceServicer_to_server, stems)),
                Service(
                    job_pb2.DESCRIPTOR.services_by_name["JobService"].full_name,
                    functools.partial(job_pb2_grpc.add_JobServiceServicer_to_server, jobs),
                ),
            ],
            OUTAGES,
        )
        port = await server.start()
        stack.push_async_callback(server.stop)
        watching = asyncio.create_task(_watch_model(server, triton, config.model))
        telemetry.log().info("ready", port=port)
        try:
            await until_signalled()
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching


async def _watch_model(server: Server, triton: Triton, model: str) -> None:
    """StemService can do its work while the model answers; jobs are accepted before."""
    while True:
        alive = await triton.is_ready(model)
        if alive:
            try:
                await triton.probe(model, PROBE_TIMEOUT)
            except TritonError as error:
                alive = error.status in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")  # busy
        await server.set_health(STEM_SERVICE, alive)
        await asyncio.sleep(MODEL_CHECK_SECONDS)


if __name__ == "__main__":
    telemetry.configure(settings(), "api")
    asyncio.run(serve(settings()))
