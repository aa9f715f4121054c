"""The cache of analyses, and what is known of those that are being made: on a real PostgreSQL and Valkey."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from contrafact.v1 import analysis_pb2
from redis.asyncio import Redis

from servers.analyzer.version import ANALYZER
from servers.local import Stack, running_stack
from servers.orchestrator.analyses.cache import AnalysisCache
from servers.orchestrator.analyses.features import Growing, split, told
from servers.orchestrator.analyses.partial import PartialAnalyses
from servers.orchestrator.analyses.store import AnalysisStore, Made
from servers.orchestrator.jobs.events import connect as connect_redis
from servers.platform.settings import Settings
from servers.storage import keys
from servers.storage.migrate import migrate
from tests.conftest import stack_settings
from tests.orchestrator.jobs_world import OWNER, World, world_of

pytestmark = pytest.mark.timeout(120)

LOUD, TEMPO, PITCH = analysis_pb2.FEATURE_LOUDNESS, analysis_pb2.FEATURE_TEMPO, analysis_pb2.FEATURE_PITCH


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """PostgreSQL and Valkey."""
    with running_stack(tmp_path_factory.mktemp("stores"), only={"postgres", "valkey"}) as running:
        migrate(stack_settings(running).database_url)
        yield running


@pytest.fixture
async def world(stores: Stack) -> AsyncIterator[World]:
    """A world without jobs."""
    async with world_of(stack_settings(stores)) as made:
        yield made


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that is slow for a moment is not taken for one that is away."""
    monkeypatch.setattr("servers.orchestrator.analyses.quick._SECONDS", 5.0)


@asynccontextmanager
async def caching(settings: Settings) -> AsyncIterator[AnalysisCache]:
    """The cache of one API server."""
    redis = connect_redis(settings)
    try:
        async with AnalysisCache(redis, settings) as cache:
            yield cache
    finally:
        await redis.aclose()


@asynccontextmanager
async def hanging(stores: Stack) -> AsyncIterator[None]:
    """A Redis that takes connections and does not answer."""
    pid = stores.processes["valkey"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def features() -> analysis_pb2.Features:
    """Some, with long lists."""
    made = analysis_pb2.Features()
    made.loudness.integrated_lufs = -14.0
    made.onsets.count, made.tempo.bpm, made.pitch.median_hz = 2, 120.0, 220.0
    made.onsets.seconds.extend([0.5, 1.0])
    made.tempo.beat_seconds.extend([0.5, 1.0])
    made.tempo.downbeats.extend([0])
    made.pitch.contour_hz.extend([0.0, 220.0])
    made.unknown.add(feature=analysis_pb2.FEATURE_KEY, reason="NO_TONALITY")
    return made


def analysis(analyzer: str = ANALYZER) -> analysis_pb2.Analysis:
    """One that is made."""
    made = analysis_pb2.Analysis(track="tracks/x", analyzer=analyzer, seconds=1.0, features=features())
    made.create_time.GetCurrentTime()
    return made


def test_the_lists_and_the_rest_are_the_whole() -> None:
    summary, details = split(features())
    assert not summary.pitch.contour_hz
    assert not summary.tempo.beat_seconds
    assert not summary.onsets.seconds
    assert summary.pitch.median_hz == 220.0
    assert summary.unknown[0].reason == "NO_TONALITY"
    assert details.tempo.bpm == 0
    assert list(details.tempo.downbeats) == [0]
    summary.MergeFrom(details)
    assert summary == features()


def test_what_grows_takes_everything_once() -> None:
    growing = Growing()
    assert growing.add(analysis_pb2.Features(loudness=features().loudness)) == [LOUD]
    again = features()
    again.loudness.integrated_lufs = -1.0
    assert growing.add(again) == [feature for feature in told(features()) if feature != LOUD]
    assert growing.add(features()) == []
    assert growing.features == features()


async def test_only_the_owner_gets_what_is_cached(stores: Stack, world: World) -> None:
    track = uuid.uuid4()
    async with caching(stack_settings(stores)) as cache:
        assert await cache.get(track, "a") is None
        made = analysis()
        await cache.put(track, "a", made)
        assert await cache.get(track, "a") == made
        assert await cache.get(track, "ab") is None
        assert await cache.get(track, "") is None
        assert 0 < await world.redis.pttl(keys.analysis(track)) <= 3_600_000
        await world.redis.set(keys.analysis(track), b"a\0\xff\xff")
        assert await cache.get(track, "a") is None


async def test_what_an_older_analyzer_made_is_not_cached(stores: Stack, world: World) -> None:
    track = uuid.uuid4()
    async with caching(stack_settings(stores)) as cache:
        await cache.put(track, "a", analysis(str(int(ANALYZER) - 1)))
        assert await cache.get(track, "a") is None


async def test_a_deleted_track_never_comes_back(stores: Stack, world: World) -> None:
    """Not even by who read the database before it was deleted, and is slow."""
    track = uuid.uuid4()
    async with caching(stack_settings(stores)) as cache, caching(stack_settings(stores)) as slow:
        await cache.put(track, "a", analysis())
        await cache.forget(track)
        await slow.put(track, "a", analysis())
        assert await cache.get(track, "a") is None
        assert await slow.get(track, "a") is None


async def test_a_redis_that_hangs_is_no_cache_and_hears_of_deletions_later(
    stores: Stack, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    track, other = uuid.uuid4(), uuid.uuid4()
    async with caching(stack_settings(stores)) as cache:
        await cache.put(track, "a", analysis())
        monkeypatch.setattr("servers.orchestrator.analyses.quick._SECONDS", 0.5)
        async with hanging(stores), asyncio.timeout(9):  # a client of Redis waits for ten
            assert await cache.get(track, "a") is None
            await cache.put(other, "a", analysis())
            await cache.forget(track)
        async with caching(stack_settings(stores)) as elsewhere, asyncio.timeout(60):
            while await elsewhere.get(track, "a") is not None:
                await asyncio.sleep(0.1)
        async with asyncio.timeout(60):
            while await cache.get(other, "a") is None:  # it is asked again
                await cache.put(other, "a", analysis())
                await asyncio.sleep(0.1)


async def test_readers_of_a_growing_analysis_meet_all_of_it(stores: Stack, world: World) -> None:
    sha256 = uuid.uuid4().hex
    partial, elsewhere = PartialAnalyses(world.redis), PartialAnalyses(world.redis)
    early = elsewhere.reader(sha256)
    assert await early.read() == []
    await partial.add(sha256, analysis_pb2.Features(loudness=features().loudness))
    assert await early.read() == [LOUD]
    assert await early.read() == []
    await partial.add(sha256, analysis_pb2.Features(loudness=features().loudness))  # of the next attempt
    await partial.add(sha256, analysis_pb2.Features(pitch=features().pitch, tempo=features().tempo))
    assert await early.read() == [TEMPO, PITCH]
    late = elsewhere.reader(sha256)
    assert await late.read() == [LOUD, TEMPO, PITCH]
    assert late.features == early.features
    assert not late.features.pitch.contour_hz  # long lists come with the whole
    assert await world.redis.ttl(keys.partial_analysis(sha256, ANALYZER)) > 0
    await partial.forget(sha256)
    assert await elsewhere.reader(sha256).read() == []


async def test_without_redis_nothing_is_known_of_a_growing_analysis(stores: Stack, world: World) -> None:
    away = Redis.from_url("redis://127.0.0.1:1/0")
    partial = PartialAnalyses(away)
    async with asyncio.timeout(20):
        await partial.add("x", features())
        assert await partial.reader("x").read() == []
        await partial.forget("x")
    await away.aclose()


async def test_analyses_are_kept_by_recording_and_version(world: World) -> None:
    store = AnalysisStore(world.pool)
    track = await world.track(10.0)
    found = await store.find(track, OWNER, full=True)
    assert found is not None
    assert not found.made
    assert found.analysis.seconds == 10.0
    assert await store.find(track, "somebody else", full=True) is None
    waveform = analysis_pb2.Waveform(points_per_second=100, minima=b"\x81", maxima=b"\x7f", rms=b"\xff")
    async with world.pool.acquire() as connection:
        await store.save(connection, found.sha256, Made("0", analysis_pb2.Features()))
        old = await store.find(track, OWNER, full=False)
        assert old is not None
        assert old.made
        assert old.stale
        assert not await store.is_made(found.sha256)
        await store.save(connection, found.sha256, Made(ANALYZER, features(), waveform))
        await store.save(
            connection, found.sha256, Made("0", analysis_pb2.Features())
        )  # by a worker of the release before
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await store.save(connection, "0" * 64, Made(ANALYZER, features()))
    assert await store.is_made(found.sha256)
    whole, basic = await store.find(track, OWNER, full=True), await store.find(track, OWNER, full=False)
    assert whole is not None
    assert whole.made
    assert not whole.stale
    assert whole.analysis.features == features()
    assert basic is not None
    assert basic.analysis.features == split(features())[0]
    assert basic.analysis.create_time == whole.analysis.create_time
    assert await store.waveform(track, OWNER) == waveform
    assert await store.waveform(track, "somebody else") is None
    assert set(await store.find_all([track, uuid.uuid4()], OWNER)) == {track}
