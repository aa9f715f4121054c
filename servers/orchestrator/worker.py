"""The worker: takes jobs from the queue and runs them. ``python -m servers.orchestrator.worker``"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack

from servers.analyzer.version import EMBEDDINGS
from servers.inference.conversion import Converter
from servers.inference.embedding import Embedder
from servers.inference.keeper import ModelKeeper
from servers.inference.models import EMBEDDER
from servers.inference.separation import Separator
from servers.inference.triton import Triton
from servers.inference.voices import VoiceModel
from servers.orchestrator.analyses.partial import PartialAnalyses
from servers.orchestrator.analyses.store import AnalysisStore
from servers.orchestrator.engines.analyzer import Analyzer
from servers.orchestrator.engines.embedder import LearnedEmbeddings
from servers.orchestrator.engines.grains import Grains
from servers.orchestrator.engines.mixer import Mixer
from servers.orchestrator.jobs.chores import Chores
from servers.orchestrator.jobs.events import JobEvents
from servers.orchestrator.jobs.events import connect as connect_redis
from servers.orchestrator.jobs.findings import Stores
from servers.orchestrator.jobs.load import Load
from servers.orchestrator.jobs.queue import JobQueue, consume
from servers.orchestrator.jobs.reconcile import chores
from servers.orchestrator.jobs.runner import Pipeline, Runner
from servers.orchestrator.jobs.store import JobStore
from servers.orchestrator.jobs.webhooks import WebhookDeliverer
from servers.orchestrator.pipelines.analyze import AnalyzePipeline
from servers.orchestrator.pipelines.cover import CoverPipeline
from servers.orchestrator.pipelines.cover_stream import Engines
from servers.orchestrator.pipelines.importing import ImportPipeline
from servers.orchestrator.pipelines.mix import MixPipeline
from servers.orchestrator.pipelines.recordings import Recordings
from servers.orchestrator.pipelines.separate import SeparatePipeline
from servers.orchestrator.pipelines.stems import Stems
from servers.orchestrator.pipelines.style import StylePipeline
from servers.orchestrator.scans.feeder import chores as scan_chores
from servers.orchestrator.styles.libraries import Libraries
from servers.orchestrator.voices.pool import PoolReports
from servers.orchestrator.voices.reconcile import VoiceReconciler
from servers.orchestrator.voices.store import VoiceStore
from servers.platform import telemetry
from servers.platform.scratch import scratch
from servers.platform.server import until_signalled
from servers.platform.settings import Settings, settings
from servers.platform.watchdog import Watchdog
from servers.storage.database import connect
from servers.storage.objects import ObjectStore


async def work(config: Settings) -> None:
    """Work until SIGTERM or SIGINT; running jobs are then handed back to the queue."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(Watchdog(config.watchdog_seconds))
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
        voice_keeper = await stack.enter_async_context(ModelKeeper(triton, config.voice_model, config))

        store, events = JobStore(pool, config.webhook_urls), JobEvents(redis, config)
        if config.webhook_urls:
            await stack.enter_async_context(WebhookDeliverer(pool, store, config))
        voice_model = VoiceModel(triton, voice_keeper)
        voice_store, reports = VoiceStore(pool), PoolReports(redis, voice_model)
        await stack.enter_async_context(VoiceReconciler(pool, objects, voice_store, voice_model, reports, config))
        mixer = await stack.enter_async_context(Mixer(config))
        analyzer = await stack.enter_async_context(Analyzer(config))
        grains = await stack.enter_async_context(Grains(config))
        separator, converter = Separator(triton, keeper, config), Converter(triton, voice_keeper, config)
        embeddings = None
        if config.embedding_model != EMBEDDINGS:
            embedder_keeper = await stack.enter_async_context(ModelKeeper(triton, EMBEDDER, config))
            embeddings = LearnedEmbeddings(Embedder(triton, embedder_keeper, config), patient=True)
        analyses = AnalysisStore(pool, config.embedding_model)
        recordings, stems = Recordings(pool, objects, config), Stems(pool, objects)
        pipelines: dict[str, Pipeline] = {
            "SEPARATE": SeparatePipeline(pool, objects, recordings, stems, separator, keeper, config),
            "COVER": CoverPipeline(
                pool,
                objects,
                recordings,
                stems,
                Engines(separator, converter, mixer),
                keeper,
                voice_keeper,
                voice_model,
                voice_store,
            ),
            "ANALYZE": AnalyzePipeline(pool, recordings, analyses, PartialAnalyses(redis), analyzer, embeddings),
            "IMPORT": ImportPipeline(pool, objects, config),
            "STYLE": StylePipeline(pool, objects, recordings, grains),
            "MIX": MixPipeline(
                pool, objects, recordings, mixer, grains, Libraries(pool, objects, redis, config), config
            ),
        }
        load = await stack.enter_async_context(Load(pool, config, export=True))
        work = [
            *chores(Stores(pool, objects, config), store, queue),
            *scan_chores(pool, objects, store, queue, load, config),
        ]
        await stack.enter_async_context(Chores(pool, work))
        runner = Runner(pipelines, store, events, queue, config)
        ready = asyncio.Event()
        tasks = [
            asyncio.create_task(consume(config, runner.serve, ready)),
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
