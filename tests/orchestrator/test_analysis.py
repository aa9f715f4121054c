"""Analyses that somebody asks for: through the real API, worker, analyzer and stores."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import soundfile
from contrafact import Client, FailedPrecondition, InvalidArgument, JobHandle, NotFound
from contrafact.v1 import analysis_pb2, job_pb2, track_pb2

from servers.analyzer.version import ANALYZER
from servers.local import Stack, running_stack
from servers.media.synthetic import write_song
from servers.orchestrator.jobs import locks
from servers.orchestrator.jobs.events import connect as connect_redis
from servers.orchestrator.jobs.store import JobStore, NewJob
from servers.orchestrator.pipelines.recordings import FETCHED
from servers.platform.settings import Settings
from servers.storage import keys
from servers.storage.database import connect, exclusive
from servers.storage.objects import ObjectStore
from tests.conftest import FAKE_MODELS, stack_settings
from tests.orchestrator.test_separation import noise, read, write

pytestmark = pytest.mark.timeout(240)

FULL = analysis_pb2.ANALYSIS_VIEW_FULL
NAMES = ("waveform", "quality", "loudness", "stereo", "onsets", "tempo", "key", "pitch", "embedding")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole stack, with a lease so short that a dead worker is missed soon."""
    with running_stack(
        tmp_path_factory.mktemp("analyses"),
        model_repository=FAKE_MODELS,
        weights=False,
        environment={"CONTRAFACT_LEASE_SECONDS": "5"},
    ) as running:
        yield running


@pytest.fixture(scope="module")
def settings(stack: Stack) -> Settings:
    """Settings of ``stack``."""
    return stack_settings(stack)


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[Client]:
    """A client of ``stack``."""
    async with Client(stack.api_address) as connected:
        yield connected


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Any]:
    """The stack's PostgreSQL."""
    pool = await connect(settings)
    yield pool
    await pool.close()


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Any]:
    """The stack's Valkey."""
    connected = connect_redis(settings)
    yield connected
    await connected.aclose()


@pytest.fixture(scope="module")
def melody(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Twenty seconds of synthetic music: 108 beats a minute, A minor."""
    path = tmp_path_factory.mktemp("melody") / "song.wav"
    write_song(path, seconds=20.0)
    return read(path)[0]


class Library:
    """Recordings, no two of which are the same: every analysis has to be made."""

    def __init__(self, client: Client, folder: Path, melody: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        self._client, self._folder, self._melody = client, folder, melody

    async def song(self, seconds: float = 20.0) -> track_pb2.Track:
        """The melody, over and over."""
        frames = round(seconds * 44_100)
        repeated = np.tile(self._melody, (1, -(-frames // self._melody.shape[1])))[:, :frames]
        return await self.upload(repeated * np.float32(np.random.default_rng().uniform(0.8, 1.0)), 44_100)

    async def upload(self, samples: np.ndarray[Any, Any], rate: int) -> track_pb2.Track:
        """Float32 [channels, frames] as a track."""
        path = self._folder / f"{uuid.uuid4()}.flac"
        if samples.shape[0] > 2 or rate > 96_000:
            path = write(path.with_suffix(".wav"), samples, rate)
        else:
            await asyncio.to_thread(soundfile.write, path, samples.T, rate, subtype="PCM_24")
        return await self._client.upload(path)


@pytest.fixture
def library(client: Client, tmp_path: Path, melody: np.ndarray[Any, np.dtype[np.float32]]) -> Library:
    """New recordings."""
    return Library(client, tmp_path, melody)


async def ask(client: Client, track: str, **options: Any) -> analysis_pb2.GetAnalysisResponse:
    """GetAnalysis as it is, without any help."""
    request = analysis_pb2.GetAnalysisRequest(track=track, **options)
    return await client._connection.unary(client._connection.analyses.GetAnalysis, request)


Heard = list[analysis_pb2.WatchAnalysisResponse]


async def watch(client: Client, track: str, heard: Heard | None = None, *, full: bool = False) -> Heard:
    """Everything that a watcher hears, in ``heard`` as soon as it is."""
    heard = [] if heard is None else heard
    async for response in client.watch_analysis(track, full=full):
        heard.append(response)
    return heard


async def growing(heard: Heard) -> analysis_pb2.WatchAnalysisResponse:
    """What was heard first of an analysis that is being made, once something is known of it."""
    async with asyncio.timeout(100):
        while not (known := [response for response in heard if response.new_features]):
            await asyncio.sleep(0.02)
    assert known[0].job, "it was made before anybody could see it grow"
    return known[0]


async def running(client: Client, name: str) -> JobHandle:
    """A job, once a worker is at it."""
    job = await client.job(name)
    async with asyncio.timeout(60):
        while (row := await job.refresh()).state != job_pb2.JOB_STATE_RUNNING or not row.attempt:
            await asyncio.sleep(0.05)  # without an attempt of its own, another is at the same
    return job


def names(features: list[analysis_pb2.Feature.ValueType]) -> list[str]:
    """Features as their fields are called."""
    return [analysis_pb2.Feature.Name(feature).removeprefix("FEATURE_").lower() for feature in features]


async def jobs_of(database: Any, track: str) -> list[Any]:
    """All jobs of a track, oldest first."""
    rows: list[Any] = await database.fetch(
        "SELECT * FROM jobs WHERE track_id = $1 ORDER BY created_at", UUID(track.split("/")[1])
    )
    return rows


async def in_background(database: Any, track: track_pb2.Track) -> Any:
    """A job such as a scan makes, which no worker is told of: one finds it within a second."""
    scan = NewJob(
        owner="local",
        request_id=uuid.uuid4(),
        kind="ANALYZE",
        priority="BACKGROUND",
        spec={"track": track.name},
        track_id=UUID(track.name.split("/")[1]),
        headers={},
        lock=locks.of_analysis(track.sha256, ANALYZER),
    )
    row, _ = await JobStore(database).create(scan)
    return row


async def test_an_analysis_is_made_when_somebody_asks(
    client: Client, library: Library, database: Any, redis: Any
) -> None:
    track = await library.song()
    signals = redis.pubsub()
    await signals.subscribe(keys.ready_channel("ANALYZE", UUID(track.name.split("/")[1])))
    with pytest.raises(NotFound, match="ANALYSIS_NOT_FOUND"):
        await ask(client, track.name, only_existing=True)
    assert await jobs_of(database, track.name) == []
    async with exclusive(database, track.sha256):  # it cannot be stored yet
        begun = await ask(client, track.name)
        assert (begun.job.kind, begun.job.priority) == (job_pb2.JOB_KIND_ANALYZE, job_pb2.PRIORITY_INTERACTIVE)
        assert begun.analysis.track == track.name
        assert begun.analysis.seconds == pytest.approx(20.0)
        assert not begun.analysis.HasField("create_time")
        assert (await ask(client, track.name, only_existing=True)).job.name == begun.job.name

    heard = await watch(client, track.name)
    basic = heard[-1].analysis
    assert [not response.analysis.HasField("create_time") for response in heard] == [True] * (len(heard) - 1) + [False]
    new = [name for response in heard for name in names(list(response.new_features))]
    assert sorted(new) == sorted(NAMES)
    assert new[0] == "waveform"
    fractions = [response.fraction for response in heard]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert basic.analyzer == ANALYZER
    plausible(basic.features)
    assert not basic.features.pitch.contour_hz
    assert not basic.features.tempo.beat_seconds

    done = await ask(client, track.name)
    assert not done.HasField("job")
    assert done.analysis == basic
    full = (await ask(client, track.name, view=FULL)).analysis.features
    assert len(full.pitch.contour_hz) * full.pitch.hop_seconds == pytest.approx(20.0, abs=0.1)
    assert len(full.onsets.seconds) == full.onsets.count
    assert np.median(np.diff(full.tempo.beat_seconds)) == pytest.approx(60 / full.tempo.bpm, rel=0.03)
    job = (await client.job(begun.job.name)).job
    assert [timing.stage for timing in job.timings] == [
        job_pb2.STAGE_FETCH,
        job_pb2.STAGE_ANALYZE,
        job_pb2.STAGE_PUBLISH,
    ]
    async with asyncio.timeout(60):
        while (message := await signals.get_message(ignore_subscribe_messages=True, timeout=1)) is None:
            pass
    assert message["data"].decode() == begun.job.name
    await signals.aclose()
    assert await redis.exists(keys.partial_analysis(track.sha256, ANALYZER)) == 0
    assert await database.fetchval("SELECT count(*) FROM sounds WHERE track_id = $1", UUID(track.name[7:])) == 1


def plausible(features: analysis_pb2.Features) -> None:
    """Check what is known of the melody."""
    assert [name for name in NAMES if not features.HasField(name)] == []  # type: ignore[arg-type]
    assert not features.unknown
    assert len(features.waveform.minima) == len(features.waveform.maxima) == len(features.waveform.rms) == 1000
    assert not features.quality.silent
    assert features.quality.clipped_runs == 0
    assert -30 < features.loudness.integrated_lufs < -5
    assert features.loudness.track_gain_db == pytest.approx(-18 - features.loudness.integrated_lufs, abs=1e-6)
    assert -4 < features.loudness.true_peak_db < 1
    assert 0 < features.stereo.correlation < 1
    tempi = [features.tempo.bpm, *(other.bpm for other in features.tempo.alternatives)]
    assert min(abs(bpm - 108) for bpm in tempi) < 2
    assert features.key.name in ("A minor", "C major")
    assert features.key.tuning_hz == pytest.approx(440, abs=3)
    assert 50 < features.pitch.low_hz < features.pitch.median_hz < features.pitch.high_hz < 1000
    assert 2 < features.onsets.rate < 20
    assert np.linalg.norm(features.embedding.values) == pytest.approx(1, abs=1e-4)


async def test_who_asks_again_does_not_ask_postgresql(client: Client, library: Library, database: Any) -> None:
    track = await library.song(5.0)
    made = await client.analyze(track)
    assert (await ask(client, track.name)).analysis == made
    async with database.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE tracks, recordings, analyses, jobs IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(20):
            assert (await ask(client, track.name)).analysis == made
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await ask(client, track.name, view=FULL)


async def test_two_hundred_callers_share_one_analysis(client: Client, library: Library, database: Any) -> None:
    track = await library.song(30.0)
    async with exclusive(database, track.sha256):  # it is not done before the last of them has asked
        answers = await asyncio.gather(*(ask(client, track.name) for _ in range(200)))
    assert len({answer.job.name for answer in answers}) == 1
    analyses = await asyncio.gather(*(client.analyze(track) for _ in range(20)))
    assert all(analysis == analyses[0] for analysis in analyses)
    jobs = await jobs_of(database, track.name)
    assert [(job["state"], job["attempt"]) for job in jobs] == [("SUCCEEDED", 1)]


async def test_watchers_late_and_early_get_everything(client: Client, library: Library, database: Any) -> None:
    track = await library.song(60.0)
    heard: Heard = []
    later: Heard = []
    async with exclusive(database, track.sha256):  # it is not done before both have heard of it
        early = asyncio.create_task(watch(client, track.name, heard, full=True))
        before = await growing(heard)
        late = asyncio.create_task(watch(client, track.name, later, full=True))
        assert set(before.new_features) <= set((await growing(later)).new_features)
    await asyncio.gather(early, late)
    assert later[0].analysis.features.HasField("waveform")
    for responses in (heard, later):
        assert sorted(n for response in responses for n in names(list(response.new_features))) == sorted(NAMES)
    assert heard[-1].analysis == later[-1].analysis == (await ask(client, track.name, view=FULL)).analysis
    after = await watch(client, track.name, full=True)
    assert [response.analysis for response in after] == [heard[-1].analysis]
    assert sorted(names(list(after[0].new_features))) == sorted(NAMES)


async def test_a_redis_that_forgets_everything_changes_nothing(
    client: Client, library: Library, database: Any, redis: Any
) -> None:
    track = await library.song(60.0)
    heard: Heard = []
    async with exclusive(database, track.sha256):  # it is not done before
        watching = asyncio.create_task(watch(client, track.name, heard))
        await growing(heard)
        await redis.flushall()
    await watching
    made = heard[-1].analysis
    assert sorted(n for response in heard for n in names(list(response.new_features))) == sorted(NAMES)
    await redis.flushall()
    assert (await ask(client, track.name)).analysis == made


async def test_a_worker_that_dies_is_replaced(client: Client, library: Library, stack: Stack, database: Any) -> None:
    track = await library.song(60.0)
    heard: Heard = []
    async with exclusive(database, track.sha256):  # it is not done before
        watching = asyncio.create_task(watch(client, track.name, heard))
        await growing(heard)
        os.kill(stack.processes["worker"].pid, signal.SIGKILL)
    await watching
    assert sorted(n for response in heard for n in names(list(response.new_features))) == sorted(NAMES)
    jobs = await jobs_of(database, track.name)
    assert [(job["state"], job["attempt"]) for job in jobs] == [("SUCCEEDED", 2)]
    assert [attempt["reason"] for attempt in jobs[0]["attempts"]] == ["WORKER_LOST", None]
    assert (await ask(client, track.name)).analysis == heard[-1].analysis


async def test_an_analyzer_that_dies_is_replaced(client: Client, library: Library, stack: Stack, database: Any) -> None:
    track = await library.song(340.0)
    job = await client.job((await ask(client, track.name)).job.name)
    async for event in job.watch():
        if event.progress.fraction > FETCHED:  # it has begun, and has much to do
            break
    os.kill(stack.processes["analyzer"].pid, signal.SIGKILL)
    assert (await watch(client, track.name))[-1].analysis.HasField("create_time")
    jobs = await jobs_of(database, track.name)
    assert [(job["state"], job["attempt"]) for job in jobs] == [("SUCCEEDED", 2)]
    assert [attempt["reason"] for attempt in jobs[0]["attempts"]] == ["INFRASTRUCTURE", None]


async def test_a_track_deleted_meanwhile(client: Client, library: Library, stack: Stack, database: Any) -> None:
    track = await library.song()
    analyzer, heard = stack.processes["analyzer"].pid, list[analysis_pb2.WatchAnalysisResponse]()
    os.kill(analyzer, signal.SIGSTOP)  # nothing is made of it by itself
    try:
        watching = asyncio.create_task(watch(client, track.name, heard))
        await running(client, (await ask(client, track.name)).job.name)
        async with asyncio.timeout(60):
            while not heard:
                await asyncio.sleep(0.02)
        with pytest.raises(FailedPrecondition, match="TRACK_IN_USE"):
            await client.delete_track(track.name)
        await client.delete_track(track.name, cancel_jobs=True)
        with pytest.raises(FailedPrecondition, match="JOB_CANCELLED"):
            await watching
    finally:
        os.kill(analyzer, signal.SIGCONT)
    with pytest.raises(NotFound, match="TRACK_NOT_FOUND"):
        await ask(client, track.name)
    assert await database.fetchval("SELECT count(*) FROM analyses WHERE sha256 = $1", track.sha256) == 0


async def test_a_deleted_track_is_not_served(client: Client, library: Library, database: Any) -> None:
    track = await library.song(5.0)
    await client.analyze(track)
    await ask(client, track.name)
    await client.delete_track(track.name)
    for view in (FULL, analysis_pb2.ANALYSIS_VIEW_BASIC):
        with pytest.raises(NotFound, match="TRACK_NOT_FOUND"):
            await ask(client, track.name, view=view)
    assert await database.fetchval("SELECT count(*) FROM analyses WHERE sha256 = $1", track.sha256) == 0


async def test_others_tracks_are_nobodys_business(client: Client, library: Library, database: Any, redis: Any) -> None:
    track = await library.song(5.0)
    made = await client.analyze(track)
    theirs = uuid.uuid4()
    await database.execute(
        "INSERT INTO tracks (id, owner, display_name, sha256) VALUES ($1, 'they', 'theirs', $2)", theirs, track.sha256
    )
    await redis.set(keys.analysis(theirs), b"they\0" + made.SerializeToString())
    for call in (
        ask(client, f"tracks/{theirs}"),
        ask(client, f"tracks/{theirs}", view=FULL),
        watch(client, f"tracks/{theirs}"),
        client.waveform(f"tracks/{theirs}"),
        client.album_loudness([track.name, f"tracks/{theirs}"]),
        ask(client, f"tracks/{uuid.uuid4()}"),
        ask(client, "tracks/------------------------------------"),
    ):
        with pytest.raises(NotFound, match="TRACK_NOT_FOUND"):
            await call


async def test_waveforms_of_any_stretch(client: Client, library: Library) -> None:
    samples = np.zeros((2, 44_100 * 4), np.float32)
    samples[0, 44_100 * 2 : 44_100 * 3] = 0.5  # the third second
    samples[1, 44_100 * 2 + 7] = -0.9
    track = await library.upload(samples, 44_100)
    with pytest.raises(NotFound, match="ANALYSIS_NOT_FOUND"):
        await client.waveform(track)
    await client.analyze(track)
    whole = await client.waveform(track, points=20_000)
    assert (len(whole.maxima), whole.points_per_second, whole.start_seconds) == (400, 100, 0)
    assert np.frombuffer(whole.maxima, np.int8).nonzero()[0].tolist() == list(range(200, 300))
    assert np.frombuffer(whole.minima, np.int8).nonzero()[0].tolist() == [200]
    part = await client.waveform(track, start=1.0, end=3.0, points=2)
    assert (part.start_seconds, part.points_per_second) == (1.0, 1.0)
    assert np.frombuffer(part.maxima, np.int8).tolist() == [0, 64]
    assert np.frombuffer(part.minima, np.int8).tolist() == [0, -114]
    assert len((await client.waveform(track, start=100.0)).maxima) == 0
    with pytest.raises(InvalidArgument) as refusal:
        await client.waveform(track, start=2.0, end=1.0)
    assert refusal.value.field_violations[0].field == "end_seconds"


async def test_a_long_recording_is_the_same_in_two_passes(client: Client, library: Library, database: Any) -> None:
    """As it is analysed when somebody waits for its waveform, and in one pass, as by a scan."""
    track = await library.upload(noise(4000 * 370, 2), 4000)
    heard = await watch(client, track.name, full=True)
    assert sorted(n for response in heard for n in names(list(response.new_features))) == sorted(NAMES)
    shape = await client.waveform(track, points=20_000)
    assert len((await client.waveform(track, start=180.0, end=190.0, points=20_000)).rms) == 1000
    await database.execute("DELETE FROM analyses WHERE sha256 = $1", track.sha256)
    row = await in_background(database, track)
    await (await client.job(f"jobs/{row['id']}")).wait()
    again = (await ask(client, track.name, view=FULL)).analysis.features
    for features in (again, whole := heard[-1].analysis.features):
        features.unknown.sort(key=lambda unknown: unknown.feature)
    assert again == whole
    assert await client.waveform(track, points=20_000) == shape


async def test_what_is_known_of_twelve_hours_fits_a_message(client: Client, library: Library, database: Any) -> None:
    track = await library.song(5.0)
    await client.analyze(track)
    details, points = analysis_pb2.Features(), 12 * 3600 * 100
    details.pitch.contour_hz.extend(np.full(12 * 3600 * 1000 // 16, 220.0))
    details.tempo.beat_seconds.extend(np.arange(12 * 3600) / 2)
    details.onsets.seconds.extend(np.arange(4 * 12 * 3600) / 4)
    shape = analysis_pb2.Waveform(minima=bytes(points), maxima=b"\x01" * points, rms=bytes(points))
    await database.execute(
        "UPDATE analyses SET details = $2, waveform = $3 WHERE sha256 = $1",
        track.sha256,
        details.SerializeToString(),
        shape.SerializeToString(),
    )
    full = (await ask(client, track.name, view=FULL)).analysis.features
    assert len(full.pitch.contour_hz) == 2_700_000
    assert (await client.waveform(track, points=500)).maxima == b"\x01" * 500


async def test_an_album_is_as_loud_as_all_of_it(client: Client, library: Library) -> None:
    loud = await library.upload(noise(441_000, 2, seed=1, level=0.2), 44_100)
    soft = await library.upload(noise(441_000, 2, seed=2, level=0.02), 44_100)
    silent = await library.upload(noise(441_000, 2, level=0.0), 44_100)
    with pytest.raises(FailedPrecondition, match="NOT_ANALYZED") as refusal:
        await client.album_loudness([loud, soft])
    assert loud.name in str(refusal.value)
    both = [await client.analyze(track) for track in (loud, soft)]
    await client.analyze(silent)
    album = await client.album_loudness([loud, soft, silent])
    # The soft one is 20 LU below and gated out.
    assert album.integrated_lufs == pytest.approx(both[0].features.loudness.integrated_lufs, abs=0.1)
    assert album.album_gain_db == pytest.approx(-18 - album.integrated_lufs, abs=1e-6)
    assert album.true_peak_db == both[0].features.loudness.true_peak_db
    nothing = await client.album_loudness([silent])
    assert not nothing.HasField("integrated_lufs")
    assert not nothing.HasField("true_peak_db")


async def test_a_failure_stands_for_a_minute(
    client: Client, library: Library, settings: Settings, database: Any
) -> None:
    track = await library.song(5.0)
    key = await database.fetchval("SELECT object_key FROM recordings WHERE sha256 = $1", track.sha256)
    objects = ObjectStore(settings)
    try:
        sound = b"".join([part async for part in objects.read(key, 0)])
        await objects.put(key, b"RIFF" + bytes(100))
        with pytest.raises(FailedPrecondition, match="JOB_FAILED"):
            await watch(client, track.name)
        failed = await ask(client, track.name)
        assert failed.job.state == job_pb2.JOB_STATE_FAILED
        assert failed.job.error.reason not in ("", "INTERNAL", "INFRASTRUCTURE")
        with pytest.raises(FailedPrecondition, match="JOB_FAILED"):
            await watch(client, track.name)
        with pytest.raises(NotFound, match="ANALYSIS_NOT_FOUND"):
            await ask(client, track.name, only_existing=True)
        assert len(await jobs_of(database, track.name)) == 1
        await objects.put(key, sound)
        await database.execute("UPDATE jobs SET ended_at = ended_at - interval '1 min' WHERE state = 'FAILED'")
        await client.analyze(track)
        assert [job["state"] for job in await jobs_of(database, track.name)] == ["FAILED", "SUCCEEDED"]
    finally:
        await objects.close()


async def test_who_cancels_may_ask_again(client: Client, library: Library, database: Any) -> None:
    track = await library.song()
    heard: Heard = []
    async with exclusive(database, track.sha256):  # it ends in no other way than by being cancelled
        watching = asyncio.create_task(watch(client, track.name, heard))
        before = await growing(heard)
        await (await client.job(before.job)).cancel()
        again = await ask(client, track.name)  # at once: the cancelled one may still be running
        assert again.job.name != before.job
        with pytest.raises(FailedPrecondition, match="JOB_CANCELLED"):
            await watching
    await client.analyze(track)
    assert [job["state"] for job in await jobs_of(database, track.name)] == ["CANCELLED", "SUCCEEDED"]


async def test_somebody_who_waits_overtakes_the_background(client: Client, library: Library, database: Any) -> None:
    track = await library.song()
    row = await in_background(database, track)
    async with exclusive(database, track.sha256):  # it is not done before
        await running(client, f"jobs/{row['id']}")
        assert (await ask(client, track.name, only_existing=True)).job.name == f"jobs/{row['id']}"
        begun = await ask(client, track.name)
        assert begun.job.priority == job_pb2.PRIORITY_INTERACTIVE
        await running(client, begun.job.name)  # the background has let go: they do the same
    await client.analyze(track)
    await (await client.job(f"jobs/{row['id']}")).wait()
    background, interactive = await jobs_of(database, track.name)
    assert interactive["attempt"] == 1
    assert [attempt["outcome"] for attempt in background["attempts"]] == ["HANDED_BACK", "SUCCEEDED"]
    assert "ANALYZE" in str(interactive["timings"])
    assert "ANALYZE" not in str(background["timings"])  # it found what was made meanwhile


async def test_an_old_analysis_is_served_and_made_anew_once(
    client: Client, library: Library, database: Any, redis: Any
) -> None:
    track = await library.song(5.0)
    made = await client.analyze(track)
    await database.execute("UPDATE analyses SET analyzer = '0' WHERE sha256 = $1", track.sha256)
    await redis.flushall()
    assert (await ask(client, track.name)).analysis.analyzer == "0"
    assert len(await jobs_of(database, track.name)) == 1  # what was made lately is not made anew
    await database.execute(
        "UPDATE jobs SET ended_at = ended_at - interval '2 hours' WHERE track_id = $1",
        uuid.UUID(track.name.removeprefix("tracks/")),
    )
    async with exclusive(database, track.sha256):  # the new one is not there before the last of them has asked
        answers = await asyncio.gather(*(ask(client, track.name) for _ in range(20)))
    assert [(answer.analysis.analyzer, answer.HasField("job")) for answer in answers] == [("0", False)] * 20
    async with asyncio.timeout(60):
        while (await ask(client, track.name)).analysis.analyzer != ANALYZER:
            await asyncio.sleep(0.2)
    assert [job["priority"] for job in await jobs_of(database, track.name)] == ["INTERACTIVE", "BACKGROUND"]
    assert (await ask(client, track.name)).analysis.features == made.features


@pytest.mark.parametrize(
    ("samples", "rate", "unknown"),
    [
        (np.zeros((2, 441_000), np.float32), 44_100, {"SILENT"}),
        (noise(441, 2), 44_100, {"TOO_SHORT"}),
        (noise(1, 1), 44_100, {"TOO_SHORT", "SILENT"}),
        (noise(80_000, 1), 8_000, None),
        (noise(4000, 1), 1_000, {"SAMPLE_RATE_TOO_LOW"}),
        (noise(600_000, 2), 192_000, None),
        (noise(200_000, 8), 48_000, None),
        (np.ones((2, 200_000), np.float32), 44_100, None),
    ],
    ids=["silence", "10 ms", "one sample", "8 kHz", "1 kHz", "192 kHz", "8 channels", "DC"],
)
async def test_hostile_recordings(
    client: Client, library: Library, samples: np.ndarray[Any, Any], rate: int, unknown: set[str] | None
) -> None:
    track = await library.upload(samples, rate)
    analysis = await client.analyze(track, full=True)
    features = analysis.features
    known = {name for name in NAMES if features.HasField(name)}  # type: ignore[arg-type]
    untold = set(names([entry.feature for entry in features.unknown]))
    assert not known & untold
    assert known | untold | ({"stereo"} if samples.shape[0] == 1 else set()) == set(NAMES)
    if unknown is not None:
        assert {entry.reason for entry in features.unknown} <= unknown
        assert {"tempo", "key", "pitch"} <= untold
    assert analysis.seconds == pytest.approx(samples.shape[1] / rate)
    assert (await client.analysis(track, full=True)) == analysis
    waveform = await client.waveform(track)
    assert len(waveform.minima) == len(waveform.maxima) == len(waveform.rms) >= 1
