"""Attempts go on where earlier ones were cut short; what comes of it is what an uninterrupted attempt makes."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from contrafact import Client, JobCancelled
from contrafact.v1 import artifact_pb2, job_pb2, track_pb2
from numpy.typing import NDArray

from servers.inference.separation import GEOMETRY
from servers.local import Stack, running_stack
from servers.platform.settings import Settings
from servers.storage import keys
from servers.storage.database import Pool, connect, exclusive
from servers.storage.objects import ObjectStore
from tests.conftest import FAKE_MODELS, stack_settings
from tests.inference.fake import ComputeLog
from tests.orchestrator.test_covers import PLAIN, is_a_cover, shelf, stages
from tests.orchestrator.test_separation import fake_stem, noise, read, write

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

SEGMENTS = 12
SECONDS = SEGMENTS * GEOMETRY.stride / 44_100 - 0.02
# Made twice: the segment that the encoder held back, the one it is blended with, and those that were under way.
AGAIN = 6
Samples = NDArray[np.float32]


class Bench:
    """The stack, its client and what its model has computed."""

    def __init__(self, stack: Stack, client: Client, database: Pool, objects: ObjectStore, log: ComputeLog) -> None:
        self.stack = stack
        self.client = client
        self.database = database
        self.objects = objects
        self.log = log

    def unpublished(self, track: track_pb2.Track) -> AbstractAsyncContextManager[Any]:
        """Nothing that is made of the track is published: no job of it ends by itself."""
        return exclusive(self.database, track.sha256)

    async def kill_worker(self) -> None:
        """The stack starts another at once, which gets the job when the lease has run out."""
        old = self.stack.processes["worker"].pid
        os.kill(old, signal.SIGKILL)

        async def another() -> bool:
            child = self.stack.processes["worker"]
            return child.running and child.pid != old

        await eventually(another)

    async def reaches(self, job: Any, share: float, attempt: int = 1) -> None:
        """Wait until an attempt has stored so much of every file that it grows, or has ended."""

        async def reached() -> bool:
            frames = await self.database.fetchval(
                """SELECT min(frames) FROM (SELECT max(frames) AS frames FROM live_pieces
                                            WHERE job_id = $1 AND attempt = $2 GROUP BY stem) AS files""",
                id_of(job),
                attempt,
            )
            return (frames or 0) >= share * SECONDS * 44_100

        await eventually(reached)

    async def forget(self, track: track_pb2.Track) -> None:
        """Make the next job begin with nothing."""
        await self.database.execute("DELETE FROM covers WHERE track_id = $1", id_of(track))
        await self.database.execute("DELETE FROM stems WHERE sha256 = $1", track.sha256)
        await self.database.execute(
            "DELETE FROM live_pieces USING jobs WHERE jobs.id = job_id AND track_id = $1", id_of(track)
        )

    async def pieces(self, job: Any, attempt: int = 1) -> list[Any]:
        """Rows of what an attempt has stored."""
        rows: list[Any] = await self.database.fetch(
            "SELECT * FROM live_pieces WHERE job_id = $1 AND attempt = $2 ORDER BY stem, start", id_of(job), attempt
        )
        return rows


def id_of(resource: Any) -> UUID:
    return UUID(resource.name.split("/")[1])


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 100.0) -> None:
    began = time.monotonic()
    while not await condition():
        assert time.monotonic() - began < seconds, "it never happened"
        await asyncio.sleep(0.02)


def made(job: job_pb2.Job) -> list[artifact_pb2.Artifact]:
    """What is made, without when."""
    for artifact in job.artifacts:
        artifact.ClearField("create_time")
    return list(job.artifacts)


def stem_of(artifact: artifact_pb2.Artifact) -> str:
    """The name of its stem."""
    return artifact.name.rsplit(".", 2)[1]


@pytest.fixture(scope="module")
def resume_log(tmp_path_factory: pytest.TempPathFactory) -> ComputeLog:
    path = tmp_path_factory.mktemp("log") / "computed"
    path.touch()
    return ComputeLog(path)


@pytest.fixture(scope="module")
def resume_stack(tmp_path_factory: pytest.TempPathFactory, resume_log: ComputeLog) -> Iterator[Stack]:
    with running_stack(
        tmp_path_factory.mktemp("resume"),
        model_repository=FAKE_MODELS,
        weights=False,
        restarts=100,
        restart_delay=0.25,
        environment={
            "CONTRAFACT_FAKE_DELAY": "0.25",
            "CONTRAFACT_FAKE_RVC_DELAY": "0.6",
            "CONTRAFACT_FAKE_LOG": str(resume_log.path),
            "CONTRAFACT_WORKER_CONCURRENCY": "1",
            "CONTRAFACT_LEASE_SECONDS": "4",
            "CONTRAFACT_CHECKPOINT_SECONDS": "30",
        },
    ) as running:
        yield running


@pytest.fixture
def resume_settings(resume_stack: Stack) -> Settings:
    return stack_settings(resume_stack)


@pytest.fixture
async def bench(resume_stack: Stack, resume_settings: Settings, resume_log: ComputeLog) -> AsyncIterator[Bench]:
    database = await connect(resume_settings)
    objects = ObjectStore(resume_settings)
    async with Client(resume_stack.api_address) as client:
        yield Bench(resume_stack, client, database, objects, resume_log)
    await objects.close()
    await database.close()


def music(rate: int, channels: int, seed: int) -> Samples:
    """Noise with some samples so loud that every stem of it clips."""
    samples = noise(round(SECONDS * rate), channels, seed=seed)
    samples[:, 5_000 :: rate // 2] = 30.0
    return samples


@pytest.mark.parametrize(
    ("audio_format", "rate", "channels", "stems"),
    [
        ("flac", 44_100, 2, "all"),
        ("wav", 44_100, 2, ["vocals", "instrumental"]),
        ("flac", 44_100, 1, ["drums", "vocals"]),
        ("mp3", 44_100, 2, ["vocals", "instrumental"]),
        ("opus", 44_100, 1, ["bass"]),
        ("flac", 48_000, 2, ["vocals", "bass"]),
        ("opus", 48_000, 2, ["other"]),
    ],
)
async def test_a_separation_goes_on_after_its_worker_was_killed(
    bench: Bench, tmp_path: Path, audio_format: str, rate: int, channels: int, stems: Any
) -> None:
    samples = music(rate, channels, seed=1)
    track = await bench.client.upload(write(tmp_path / "in.wav", samples, rate))
    options = {"stems": stems, "format": audio_format}
    expected = await (await bench.client.separate(track, **options)).wait()
    for artifact in expected.artifacts:
        await bench.client.download(artifact, tmp_path / f"{artifact.stem}-expected")
    await bench.forget(track)

    bench.log.begin()
    async with bench.unpublished(track):
        job = await bench.client.separate(track, **options)
        listening = asyncio.create_task(job.save_live(tmp_path / "live"))
        await bench.reaches(job, 0.6)
        await bench.kill_worker()
    done = await job.wait()
    live = await listening
    assert done.attempt == 2
    assert len(bench.log.computed()) <= SEGMENTS + AGAIN
    for artifact in done.artifacts:
        name = stem_of(artifact)
        stored = await bench.client.download(artifact, tmp_path / f"{artifact.stem}-stored")
        assert live[name].read_bytes() == stored.read_bytes()
    if rate == 44_100:
        assert made(done) == made(expected)
        assert list(done.warnings) == list(expected.warnings)
        assert all(artifact.clipped_samples > 0 for artifact in done.artifacts) == (audio_format != "wav")
        return
    for artifact, other in zip(made(done), made(expected), strict=True):
        assert (artifact.frames, artifact.clipped_samples) == (other.frames, other.clipped_samples)
        assert artifact.peak == pytest.approx(other.peak, abs=1e-6)
        if audio_format == "flac":
            got, _ = read(tmp_path / f"{artifact.stem}-stored")
            np.testing.assert_allclose(got, read(tmp_path / f"{artifact.stem}-expected")[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("fate", ["missing", "short", "damaged"])
async def test_what_is_sound_of_a_checkpoint_is_used(bench: Bench, tmp_path: Path, fate: str) -> None:
    samples = noise(round(SECONDS * 44_100), 2, seed=sum(map(ord, fate)))
    track = await bench.client.upload(write(tmp_path / "in.wav", samples, 44_100))
    bench.log.begin()
    async with bench.unpublished(track):
        job = await bench.client.separate(track, stems=["drums", "vocals"])
        await bench.reaches(job, 0.6)
        await bench.kill_worker()
    rows = [row for row in await bench.pieces(job) if row["stem"] == "vocals"]
    # The last but one: what comes after it must not be used either.
    spoilt = rows[-2]
    key = keys.live_piece(id_of(job), 1, "vocals", spoilt["start"])
    data = bytearray(b"".join([part async for part in bench.objects.read(key)]))
    if fate == "missing":
        await bench.objects.delete([key])
    elif fate == "short":
        await bench.objects.put(key, bytes(data[: len(data) // 2]))
    else:
        data[len(data) // 2] ^= 4
        await bench.objects.put(key, bytes(data))
    done = await job.wait()
    assert done.attempt == 2
    assert SEGMENTS < len(bench.log.computed()) <= SEGMENTS + AGAIN + 3
    for artifact in done.artifacts:
        got, _ = read(await bench.client.download(artifact, tmp_path / "stem.flac"))
        np.testing.assert_allclose(got, fake_stem(stem_of(artifact), samples), atol=2e-7, rtol=0)


async def test_without_a_piece_of_one_stem_everything_is_made_again(bench: Bench, tmp_path: Path) -> None:
    samples = noise(round(SECONDS * 44_100), 1, seed=3)
    track = await bench.client.upload(write(tmp_path / "in.wav", samples, 44_100))
    async with bench.unpublished(track):
        job = await bench.client.separate(track, stems=["drums", "vocals"])
        await bench.reaches(job, 0.3)
        await bench.kill_worker()
    await bench.database.execute("DELETE FROM live_pieces WHERE job_id = $1 AND stem = 'drums'", id_of(job))
    await asyncio.sleep(1.0)  # what the killed worker had asked of the model
    bench.log.begin()
    done = await job.wait()
    assert len(bench.log.computed()) == SEGMENTS
    for artifact in done.artifacts:
        got, _ = read(await bench.client.download(artifact, tmp_path / "stem.flac"))
        np.testing.assert_allclose(got, fake_stem(stem_of(artifact), samples), atol=2e-7, rtol=0)


async def test_a_third_attempt_goes_on_from_the_second(bench: Bench, tmp_path: Path) -> None:
    samples = noise(round(SECONDS * 44_100), 2, seed=4)
    track = await bench.client.upload(write(tmp_path / "in.wav", samples, 44_100))
    bench.log.begin()
    async with bench.unpublished(track):
        job = await bench.client.separate(track, stems=["vocals"], format="wav")
        for attempt, share in ((1, 0.3), (2, 0.7)):
            await bench.reaches(job, share, attempt)
            await bench.kill_worker()
    done = await job.wait()
    assert done.attempt == 3
    assert len(bench.log.computed()) <= SEGMENTS + 2 * AGAIN
    got, _ = read(await bench.client.download(done.artifacts[0], tmp_path / "vocals.wav"))
    np.testing.assert_allclose(got, fake_stem("vocals", samples), atol=1e-6)
    # What was taken over counts before anything is separated.
    events = [event async for event in job.watch()]
    began = next(at for at, event in enumerate(events) if event.job.attempt == 3)
    before = itertools.takewhile(lambda event: event.progress.stage != job_pb2.STAGE_SEPARATE, events[began:])
    assert max(event.progress.fraction for event in before) > 0.5


async def test_what_is_all_made_is_only_published(bench: Bench, tmp_path: Path) -> None:
    samples = noise(44_100 * 15 + 1, 2, seed=8)
    track = await bench.client.upload(write(tmp_path / "in.wav", samples, 44_100))
    bench.log.begin()
    async with bench.unpublished(track):
        job = await bench.client.separate(track, stems=["other"])
        async for event in job.watch():
            if event.progress.stage == job_pb2.STAGE_PUBLISH:
                break
        await bench.kill_worker()
    done = await job.wait()
    assert done.attempt == 2
    assert len(bench.log.computed()) == 3
    got, _ = read(await bench.client.download(done.artifacts[0], tmp_path / "other.flac"))
    np.testing.assert_allclose(got, fake_stem("other", samples), atol=2e-7, rtol=0)


async def test_another_job_goes_on_with_what_a_cancelled_one_left(bench: Bench, tmp_path: Path) -> None:
    samples = noise(round(SECONDS * 44_100), 2, seed=5)
    track = await bench.client.upload(write(tmp_path / "in.wav", samples, 44_100))
    bench.log.begin()
    async with bench.unpublished(track):
        first = await bench.client.separate(track, stems=["bass"], format="mp3")
        second = await bench.client.separate(track, stems=["bass"], format="mp3", request_id=str(uuid.uuid4()))
        await bench.reaches(first, 0.6)
        await first.cancel()
        with pytest.raises(JobCancelled):
            await first.wait()
    done = await second.wait()
    assert done.attempt == 1
    assert len(bench.log.computed()) <= SEGMENTS + AGAIN

    async def tidy() -> bool:
        rows = [row for job in (first, second) for row in await bench.pieces(job)]
        found = [key for job in (first, second) for key in await bench.objects.find(keys.live_prefix(id_of(job)))]
        return not rows and not found

    await eventually(tidy)


async def test_nobody_hears_of_checkpoints(bench: Bench, tmp_path: Path) -> None:
    """Short lossy results have none; those of longer ones have no events."""
    lengths = {"short": 20, "long": 40}
    for name, seconds in lengths.items():
        samples = noise(44_100 * seconds, 1, seed=seconds)
        track = await bench.client.upload(write(tmp_path / f"{name}.wav", samples, 44_100))
        stored: set[str] = set()
        events = []
        async with AsyncExitStack() as held:  # what is stored is there until it was looked at
            await held.enter_async_context(bench.unpublished(track))
            job = await bench.client.separate(track, stems=["vocals"], format="mp3")
            async for event in job.watch():
                events.append(event)
                stored |= {row["stem"] for row in await bench.pieces(job)}
                if event.progress.stage == job_pb2.STAGE_PUBLISH:
                    await held.aclose()
        assert stored - {"vocals"} == ({"vocals.checkpoint"} if name == "long" else set())
        pieces = [event.piece for event in events if event.HasField("piece")]
        assert {piece.stem for piece in pieces} == {events[-1].job.artifacts[0].stem}
        ends = [piece.offset + piece.size_bytes for piece in pieces]
        assert [piece.offset for piece in pieces] == [0, *ends[:-1]]
        assert [artifact.size_bytes for artifact in events[-1].job.artifacts] == ends[-1:]


async def test_a_cover_goes_on_with_its_separation(bench: Bench, resume_settings: Settings, tmp_path: Path) -> None:
    samples = noise(round(SECONDS * 44_100), 2, seed=6)
    track = await bench.client.upload(write(tmp_path / "in.wav", samples, 44_100))
    async with shelf(resume_settings) as voice:
        name = await voice(gain=0.8)
    expected = await (await bench.client.cover(track, name, format="wav", **PLAIN)).wait()
    await bench.forget(track)
    bench.log.begin()

    async def separated() -> bool:
        rows = [row for row in await bench.pieces(job) if row["stem"] == "vocals"]
        return bool(rows) and rows[-1]["frames"] >= 0.5 * samples.shape[1]

    async with bench.unpublished(track):
        job = await bench.client.cover(track, name, format="wav", **PLAIN)
        await eventually(separated)
        await bench.kill_worker()
    done = await job.wait()
    assert done.attempt == 2
    assert len(bench.log.computed()) <= SEGMENTS + AGAIN
    assert made(done) == made(expected)
    cover, _ = read(await bench.client.download(done.artifacts[-1], tmp_path / "cover.wav"))
    is_a_cover(cover, samples, 44_100, 0.8)


async def test_a_separated_cover_goes_on_with_its_conversion(
    bench: Bench, resume_settings: Settings, tmp_path: Path
) -> None:
    samples = noise(round(SECONDS * 44_100), 1, seed=7)
    track = await bench.client.upload(write(tmp_path / "in.wav", samples, 44_100))
    async with shelf(resume_settings) as voice:
        name, other = await voice(gain=0.8), await voice(gain=0.4)
    bench.log.begin()

    async def published() -> bool:
        return bool(await bench.database.fetchval("SELECT 1 FROM stems WHERE sha256 = $1", track.sha256))

    job = await bench.client.cover(track, name, format="wav", **PLAIN)
    await eventually(published)  # the conversion takes seconds more
    assert [stem.name async for stem in bench.client.stems(track)] == [f"{track.name}/stems/htdemucs-1.vocals.flac"]
    assert (await bench.client.job(job.name)).job.state == job_pb2.JOB_STATE_RUNNING
    await bench.kill_worker()
    done = await job.wait()
    assert done.attempt == 2
    assert stages(done) == ["FETCH", "LOAD_MODEL", "CONVERT", "MIX", "PUBLISH"]
    assert [artifact.name.split("/")[0] for artifact in done.artifacts] == ["tracks", "covers"]
    cover, _ = read(await bench.client.download(done.artifacts[-1], tmp_path / "cover.wav"))
    is_a_cover(cover, samples, 44_100, 0.8)
    await (await bench.client.cover(track, other, format="wav", **PLAIN)).wait()
    assert len(bench.log.computed()) == SEGMENTS
