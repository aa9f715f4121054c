"""The public API server: ``python -m servers.orchestrator.api``"""

from __future__ import annotations

import asyncio
import functools
from contextlib import AsyncExitStack
from types import ModuleType

from contrafact.v1 import (
    analysis_pb2,
    analysis_pb2_grpc,
    conversion_pb2,
    conversion_pb2_grpc,
    cover_pb2,
    cover_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    mix_pb2,
    mix_pb2_grpc,
    project_pb2,
    project_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
    stem_pb2,
    stem_pb2_grpc,
    style_pb2,
    style_pb2_grpc,
    track_pb2,
    track_pb2_grpc,
    voice_pb2,
    voice_pb2_grpc,
    voice_pool_pb2,
    voice_pool_pb2_grpc,
)

from servers.analyzer.version import EMBEDDINGS
from servers.inference.conversion import Converter
from servers.inference.embedding import Embedder
from servers.inference.keeper import PROBE_TIMEOUT, ModelKeeper
from servers.inference.models import EMBEDDER
from servers.inference.triton import Triton, TritonError
from servers.inference.voices import VoiceModel
from servers.orchestrator.analyses.cache import AnalysisCache
from servers.orchestrator.analyses.partial import PartialAnalyses
from servers.orchestrator.analyses.store import AnalysisStore
from servers.orchestrator.api.analysis import AnalysisService
from servers.orchestrator.api.conversion import ConversionService
from servers.orchestrator.api.covers import CoverService
from servers.orchestrator.api.creation import JobCreator
from servers.orchestrator.api.jobs import JobService
from servers.orchestrator.api.marks import MarkedStems
from servers.orchestrator.api.mixes import MixService
from servers.orchestrator.api.projects import ProjectService
from servers.orchestrator.api.search import SearchService
from servers.orchestrator.api.stems import StemService
from servers.orchestrator.api.styles import StyleService
from servers.orchestrator.api.tracks import TrackService
from servers.orchestrator.api.uploads import Uploads
from servers.orchestrator.api.voice_pool import VoicePoolService
from servers.orchestrator.api.voices import VoiceService
from servers.orchestrator.engines.analyzer import Analyzer
from servers.orchestrator.engines.embedder import LearnedEmbeddings, Listener
from servers.orchestrator.jobs.events import JobEvents
from servers.orchestrator.jobs.events import connect as connect_redis
from servers.orchestrator.jobs.hub import EventHub
from servers.orchestrator.jobs.load import Load
from servers.orchestrator.jobs.queue import JobQueue
from servers.orchestrator.jobs.store import JobStore
from servers.orchestrator.jobs.views import JobViews
from servers.orchestrator.projects.store import ProjectStore
from servers.orchestrator.scans.store import ScanStore
from servers.orchestrator.styles.libraries import Libraries
from servers.orchestrator.styles.store import StyleStore
from servers.orchestrator.voices.importing import Importer
from servers.orchestrator.voices.pool import PoolReports
from servers.orchestrator.voices.store import VoiceStore
from servers.platform import telemetry
from servers.platform.scratch import scratch
from servers.platform.server import Server, Service, until_signalled
from servers.platform.settings import Settings, settings
from servers.platform.tasks import stopped
from servers.platform.watchdog import Watchdog
from servers.storage.database import connect
from servers.storage.objects import ObjectStore
from servers.storage.outages import OUTAGES

MODEL_CHECK_SECONDS = 2.0


async def serve(config: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(Watchdog(config.watchdog_seconds))
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
        triton = await stack.enter_async_context(Triton(config))

        store, events = JobStore(pool, config.webhook_urls), JobEvents(redis, config)
        load = await stack.enter_async_context(Load(pool, config))
        views = JobViews(pool, store, load)
        hub = await stack.enter_async_context(EventHub(events, views))
        creator = JobCreator(store, views, queue, load, config)
        marked = MarkedStems(pool, creator, config)
        cache = await stack.enter_async_context(AnalysisCache(redis, config))
        tracks = TrackService(pool, objects, store, Uploads(pool, objects, config), marked, cache)
        jobs = JobService(store, views, events, hub)
        # Workers keep the model loaded; a live voice that fails may have it loaded again from here, too.
        voice_keeper = ModelKeeper(triton, config.voice_model, config)
        voice_model = VoiceModel(triton, voice_keeper)
        voice_store, reports = VoiceStore(pool), PoolReports(redis, voice_model)
        importer = Importer(pool, objects, voice_store, config)
        voices = VoiceService(objects, voice_store, store, importer, voice_model, reports)
        voice_pool = VoicePoolService(voice_store, voice_model, reports)
        stems = StemService(pool, objects, store, creator, hub, marked, config)
        covers = CoverService(pool, objects, store, creator, hub, voice_store, reports, config)
        conversion = ConversionService(
            voice_store, reports, voice_model, Converter(triton, voice_keeper, config), config
        )
        partial, scans = PartialAnalyses(redis), ScanStore(pool, store)
        analysis_store = AnalysisStore(pool, config.embedding_model)
        analyses = AnalysisService(pool, store, views, creator, hub, analysis_store, partial, cache, scans)
        listener: Listener = await stack.enter_async_context(Analyzer(config))
        if config.embedding_model != EMBEDDINGS:
            embedder = Embedder(triton, ModelKeeper(triton, EMBEDDER, config), config)
            listener = LearnedEmbeddings(embedder, patient=False)
        styles = StyleService(
            pool, objects, store, views, creator, StyleStore(pool), Libraries(pool, objects, redis, config), config
        )
        project_store = ProjectStore(pool)
        projects = ProjectService(pool, objects, store, creator, project_store, config)
        mixes = MixService(pool, objects, store, views, creator, hub, project_store)
        services = [
            _service("TrackService", track_pb2, track_pb2_grpc, tracks),
            _service("StemService", stem_pb2, stem_pb2_grpc, stems),
            _service("JobService", job_pb2, job_pb2_grpc, jobs),
            _service("VoiceService", voice_pb2, voice_pb2_grpc, voices),
            _service("VoicePoolService", voice_pool_pb2, voice_pool_pb2_grpc, voice_pool),
            _service("CoverService", cover_pb2, cover_pb2_grpc, covers),
            _service("ConversionService", conversion_pb2, conversion_pb2_grpc, conversion),
            _service("AnalysisService", analysis_pb2, analysis_pb2_grpc, analyses),
            _service("StyleService", style_pb2, style_pb2_grpc, styles),
            _service("ProjectService", project_pb2, project_pb2_grpc, projects),
            _service("MixService", mix_pb2, mix_pb2_grpc, mixes),
            _service("SearchService", search_pb2, search_pb2_grpc, SearchService(pool, config, listener)),
        ]
        server = Server(config, services, OUTAGES)
        port = await server.start()
        stack.push_async_callback(server.stop)
        watching = asyncio.create_task(_watch_models(server, triton, config))
        telemetry.log().info("ready", port=port)
        try:
            await until_signalled()
        finally:
            await stopped(watching)


def _service(name: str, messages: ModuleType, stubs: ModuleType, servicer: object) -> Service:
    register = getattr(stubs, f"add_{name}Servicer_to_server")
    return Service(_full_name(name, messages), functools.partial(register, servicer))


def _full_name(name: str, messages: ModuleType) -> str:
    return str(messages.DESCRIPTOR.services_by_name[name].full_name)


async def _watch_models(server: Server, triton: Triton, config: Settings) -> None:
    """Services can do their work while their models answer; jobs are accepted before."""
    needs = {
        _full_name("StemService", stem_pb2): (config.model,),
        _full_name("CoverService", cover_pb2): (config.model, config.voice_model),
        _full_name("ProjectService", project_pb2): (config.model,),
        _full_name("ConversionService", conversion_pb2): (config.voice_model,),
    }
    while True:
        answers = await asyncio.gather(*(_answers(triton, model) for model in (config.model, config.voice_model)))
        alive = dict(zip((config.model, config.voice_model), answers, strict=True))
        for service, models in needs.items():
            await server.set_health(service, all(alive[model] for model in models))
        await asyncio.sleep(MODEL_CHECK_SECONDS)


async def _answers(triton: Triton, model: str) -> bool:
    if not await triton.is_ready(model):
        return False
    try:
        await triton.probe(model, PROBE_TIMEOUT)
    except TritonError as error:
        return error.status in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")  # busy
    return True


if __name__ == "__main__":
    telemetry.configure(settings(), "api")
    asyncio.run(serve(settings()))
