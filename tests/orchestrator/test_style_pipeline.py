"""The pipeline of STYLE jobs when something happens meanwhile: a real grains engine, PostgreSQL, Valkey and S3."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator

import pytest
from contrafact.engine.v1 import grains_pb2
from redis.asyncio import Redis

from servers.grains.library import decode
from servers.local import Stack, running_stack
from servers.media.blocks import Block
from servers.orchestrator.engines.grains import Grains
from servers.orchestrator.jobs.events import JobEvents
from servers.orchestrator.jobs.events import connect as connect_redis
from servers.orchestrator.jobs.runner import JobFailure, JobRun
from servers.orchestrator.jobs.store import JobStore, LeaseLost
from servers.orchestrator.pipelines.recordings import Recordings
from servers.orchestrator.pipelines.style import StylePipeline
from servers.orchestrator.styles.libraries import Libraries
from servers.orchestrator.styles.store import StyleStore
from servers.platform.settings import Settings
from servers.platform.slots import BACKGROUND
from servers.storage import keys
from servers.storage.migrate import migrate
from servers.storage.outages import OUTAGES
from tests.conftest import stack_settings
from tests.engine_process import GrainsProcess
from tests.orchestrator.library import Library, opened
from tests.orchestrator.style_sounds import RATE, sound

pytestmark = pytest.mark.timeout(120)


class Watched(Grains):
    """A connection to the engine; ``meanwhile`` is done when a library has been built and not been stored."""

    meanwhile: Callable[[], Awaitable[None]] | None = None
    builds = 0

    async def build(
        self, spec: grains_pb2.BuildSpec, blocks: AsyncIterable[Block], *, priority: int = BACKGROUND
    ) -> AsyncGenerator[grains_pb2.BuildResponse, None]:
        self.builds += 1
        async for response in super().build(spec, blocks, priority=priority):
            yield response
        if self.meanwhile is not None:
            await self.meanwhile()


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """PostgreSQL with our schema, Valkey and S3."""
    with running_stack(tmp_path_factory.mktemp("stores"), only={"postgres", "valkey", "s3"}) as stack:
        migrate(stack_settings(stack).database_url)
        yield stack


@pytest.fixture(scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GrainsProcess]:
    """The grains engine."""
    process = GrainsProcess(tmp_path_factory.mktemp("grains"))
    await process.child.start()
    yield process
    await process.child.stop()


@pytest.fixture
async def library(stores: Stack) -> AsyncIterator[Library]:
    """Rows and objects, none yet."""
    async with opened(stack_settings(stores)) as made:
        yield made


@pytest.fixture
async def redis(stores: Stack) -> AsyncIterator[Redis]:
    """Redis."""
    made = connect_redis(stack_settings(stores))
    yield made
    await made.aclose()


@pytest.fixture
async def grains(engine: GrainsProcess) -> AsyncIterator[Watched]:
    """A connection to the engine."""
    async with Watched(engine.settings) as made:
        yield made


class Worker:
    """Runs the pipeline for jobs that it claims."""

    def __init__(self, library: Library, redis: Redis, grains: Grains, settings: Settings) -> None:
        self.store = JobStore(library.pool)
        self._events = JobEvents(redis, settings)
        recordings = Recordings(library.pool, library.objects, settings)
        self._pipeline = StylePipeline(library.pool, library.objects, recordings, grains)

    async def claim(self) -> JobRun:
        """Begin the next attempt at a job."""
        row = await self.store.claim(["STYLE"], background=True, worker="a worker", ageing_seconds=60)
        assert row is not None
        return JobRun(row, self.store, self._events)

    async def work(self) -> JobRun:
        """Claim a job and do it."""
        run = await self.claim()
        await self._pipeline(run)
        run.end_stage()
        return run


@pytest.fixture
def worker(library: Library, redis: Redis, grains: Watched) -> Worker:
    """One."""
    return Worker(library, redis, grains, library.settings)


async def waiting(library: Library) -> uuid.UUID:
    """A style of a sound with three grains, whose job waits."""
    sha256, _ = await library.recording()
    data = sound()
    await library.objects.put(keys.track_source(sha256, "wav"), data)
    await library.pool.execute(
        "UPDATE recordings SET sample_rate = $2, channels = 1, frames = $3, size_bytes = $4 WHERE sha256 = $1",
        *(sha256, RATE, round(2.5 * RATE), len(data)),
    )
    return await library.style(sha256, job_state="QUEUED")


async def libraries(library: Library) -> tuple[int, int]:
    """How many libraries there are, and how many objects of some."""
    count = await library.pool.fetchval("SELECT count(*) FROM grain_libraries")
    return int(count), len(await library.objects.find("styles/"))


async def test_what_is_stored_is_a_library(library: Library, redis: Redis, worker: Worker) -> None:
    style = await waiting(library)
    run = await worker.work()
    assert [timing["stage"] for timing in run.timings] == ["FETCH", "CUT", "PUBLISH"]
    found = Libraries(library.pool, library.objects, redis, library.settings)
    made = decode((await found.bytes_of(style)).data)
    row = await found.of(style)
    assert row is not None
    assert (len(made), made.sample_rate, made.channels) == (row["grain_count"], RATE, 1) == (3, RATE, 1)
    assert row["version"] == 1
    assert await libraries(library) == (1, 2)


async def test_a_style_that_is_deleted_before_its_job_begins(library: Library, worker: Worker, grains: Watched) -> None:
    style = await waiting(library)
    await StyleStore(library.pool).delete(style)
    with pytest.raises(JobFailure) as failure:
        await worker.work()
    assert failure.value.reason == "STYLE_DELETED"
    assert grains.builds == 0


async def test_a_style_that_is_deleted_while_it_is_cut(library: Library, worker: Worker, grains: Watched) -> None:
    style = await waiting(library)

    async def delete() -> None:
        await StyleStore(library.pool).delete(style)

    grains.meanwhile = delete
    with pytest.raises(JobFailure) as failure:
        await worker.work()
    assert (failure.value.reason, failure.value.retryable) == ("STYLE_DELETED", False)
    assert await libraries(library) == (0, 0)


async def test_another_style_that_waits_gets_what_is_cut(library: Library, worker: Worker, grains: Watched) -> None:
    style = await waiting(library)
    row = await StyleStore(library.pool).get(style)
    assert row is not None
    other = await library.style(row["sha256"], job_state="QUEUED")

    async def delete() -> None:
        await StyleStore(library.pool).delete(style)

    grains.meanwhile = delete
    run = await worker.work()
    assert run.row["spec"]["style"] == f"styles/{style}"
    await worker.store.finish(run.id, run.attempt, "SUCCEEDED")
    assert await libraries(library) == (1, 2)
    second = await worker.work()  # which finds it
    assert (second.row["spec"]["style"], second.timings, grains.builds) == (f"styles/{other}", [], 1)


async def test_an_attempt_that_was_overtaken_stores_no_row(library: Library, worker: Worker, grains: Watched) -> None:
    await waiting(library)

    async def take_over() -> None:
        await worker.store.requeue_lost(-1, 5)  # as if it had given no sign of life

    grains.meanwhile = take_over
    with pytest.raises(LeaseLost):
        await worker.work()
    assert (await libraries(library))[0] == 0
    grains.meanwhile = None
    run = await worker.work()
    assert run.attempt == 2
    assert await libraries(library) == (1, 2)  # the same bytes, in the same place
    await worker.store.finish(run.id, run.attempt, "SUCCEEDED")


async def test_an_engine_that_is_away_is_waited_for(library: Library, redis: Redis) -> None:
    await waiting(library)
    away = library.settings.model_copy(update={"grains_url": f"unix:/{uuid.uuid4()}", "grains_wait_seconds": 1.0})
    async with Grains(away, idle_seconds=1.0) as grains:
        with pytest.raises(OUTAGES):
            await Worker(library, redis, grains, library.settings).work()
    assert await libraries(library) == (0, 0)


async def test_a_recording_whose_bytes_are_gone(library: Library, worker: Worker) -> None:
    await waiting(library)
    await library.objects.delete_prefix("tracks/")
    with pytest.raises(JobFailure) as failure:
        await worker.work()
    assert failure.value.reason == "TRACK_DELETED"
