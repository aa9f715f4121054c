"""Processes are killed and Redis is emptied under running jobs: every job ends, and its result exists once."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import numpy as np
import psutil
import pytest
from contrafact import Client, JobFailed
from contrafact.v1 import audio_pb2, job_pb2, track_pb2
from numpy.typing import NDArray
from redis.asyncio import Redis

from servers.inference.segments import History
from servers.inference.separation import GEOMETRY, Level
from servers.local import Stack
from servers.platform.settings import Settings
from servers.storage.objects import ObjectStore
from tests.fault.conftest import DRAIN_SECONDS
from tests.fault.leftovers import regions_of
from tests.inference.fake import CRASH
from tests.orchestrator.test_separation import GAINS, fake_stem, noise, read, write

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

Database: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Samples = NDArray[np.float32]


class Recording:
    """An uploaded track of so many segments."""

    def __init__(self, samples: Samples, track: track_pb2.Track) -> None:
        self.samples = samples
        self.track = track


async def upload(client: Client, folder: Path, segments: int, seed: int) -> Recording:
    """Upload noise that nobody has uploaded before."""
    samples = noise(GEOMETRY.stride * segments - 1000, 1, seed=seed)
    return Recording(samples, await client.upload(write(folder / f"{seed}.wav", samples, 44_100)))


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> float:
    """Wait until ``condition`` holds; how long it took."""
    began = time.monotonic()
    while not await condition():
        assert time.monotonic() - began < seconds, "it never happened"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def first_piece(job: Any) -> None:
    """Wait until the job has stored its first audio."""
    async for event in job.watch():
        if event.HasField("piece"):
            return


async def is_whole(client: Client, database: Database, job: Any, recording: Recording, folder: Path) -> job_pb2.Job:
    """Check that a job's stems exist once, exactly as they should be; return the job."""
    done: job_pb2.Job = await job.wait()
    for artifact in done.artifacts:
        name = audio_pb2.StemKind.Name(artifact.stem).removeprefix("STEM_KIND_").lower()
        path = await client.download(artifact, folder / f"{uuid.uuid4()}.{artifact.media_type.partition('/')[2]}")
        np.testing.assert_allclose(read(path)[0], fake_stem(name, recording.samples), atol=1e-6)
    rows = await database.fetch(
        "SELECT stem FROM stems JOIN tracks USING (sha256) WHERE id = $1",
        uuid.UUID(recording.track.name.removeprefix("tracks/")),
    )
    assert sorted(row["stem"] for row in rows) == sorted(GAINS)
    return done


def pid_of(stack: Stack, name: str) -> int:
    """The process of that name."""
    return stack.processes[name].pid


async def restarted(stack: Stack, name: str, old: int) -> None:
    """Wait until the stack has started a process again."""

    async def another() -> bool:
        child = stack.processes[name]
        return child.running and child.pid != old

    await eventually(another)


async def test_the_worker_is_killed(
    fault_stack: Stack, fault_client: Client, database: Database, tmp_path: Path, temporary: Path
) -> None:
    """Whoever listens across the crash gets the bytes that are stored in the end."""
    recording = await upload(fault_client, tmp_path, 6, seed=1)
    job = await fault_client.separate(recording.track)
    listening = asyncio.create_task(job.save_live(tmp_path / "live"))
    await first_piece(job)
    old = pid_of(fault_stack, "worker")
    os.kill(old, signal.SIGKILL)
    await restarted(fault_stack, "worker", old)
    live = await listening
    done = await is_whole(fault_client, database, job, recording, tmp_path)
    assert done.attempt == 2
    for artifact in done.artifacts:
        name = audio_pb2.StemKind.Name(artifact.stem).removeprefix("STEM_KIND_").lower()
        stored = await fault_client.download(artifact, tmp_path / f"stored-{name}")
        assert stored.read_bytes() == live[name].read_bytes()
    assert regions_of({old}) == []
    assert len(list(temporary.iterdir())) == 2  # of the living worker and the API


async def test_the_worker_is_told_to_stop(
    fault_stack: Stack, fault_client: Client, database: Database, tmp_path: Path
) -> None:
    recording = await upload(fault_client, tmp_path, 6, seed=2)
    job = await fault_client.separate(recording.track)
    await first_piece(job)
    old = psutil.Process(pid_of(fault_stack, "worker"))
    began = time.monotonic()
    old.terminate()

    async def gone() -> bool:
        return not old.is_running() or old.status() == psutil.STATUS_ZOMBIE

    await eventually(gone)
    assert time.monotonic() - began < DRAIN_SECONDS + 2
    row = await database.fetchrow("SELECT * FROM jobs WHERE id = $1", uuid.UUID(job.name.removeprefix("jobs/")))
    assert row is not None
    # Handed back: nobody has to wait for the lease to run out.
    assert (row["state"], row["attempt"]) in (("QUEUED", 1), ("RUNNING", 2))
    assert (await job.wait()).attempt == 2
    await is_whole(fault_client, database, job, recording, tmp_path)


async def test_redis_forgets_everything(
    fault_client: Client, database: Database, fault_settings: Settings, tmp_path: Path
) -> None:
    recordings = [await upload(fault_client, tmp_path, segments, seed=30 + segments) for segments in (8, 1, 2)]
    jobs = [await fault_client.separate(recording.track, format="wav") for recording in recordings]
    await first_piece(jobs[0])
    async with Redis.from_url(fault_settings.redis_url) as redis:
        await redis.flushall()
    ended = await asyncio.gather(*(job.wait() for job in jobs))
    assert [job.attempt for job in ended] == [1, 1, 1]  # what ran was not disturbed
    for job, recording in zip(jobs, recordings, strict=True):
        await is_whole(fault_client, database, job, recording, tmp_path)


async def test_redis_hangs_and_is_killed(
    fault_stack: Stack, fault_client: Client, database: Database, tmp_path: Path
) -> None:
    """Jobs are accepted all the time; they and their watchers come to their ends."""
    recordings = [await upload(fault_client, tmp_path, segments, seed=40 + segments) for segments in (6, 1)]
    running = await fault_client.separate(recordings[0].track, format="wav")
    await first_piece(running)
    watching = asyncio.create_task(running.wait())
    valkey = pid_of(fault_stack, "valkey")
    os.kill(valkey, signal.SIGSTOP)
    try:
        queued = await fault_client.separate(recordings[1].track, format="wav")
    finally:
        os.kill(valkey, signal.SIGKILL)
    again = await fault_client.separate(recordings[1].track, format="flac", priority="background")
    ended = await asyncio.gather(watching, queued.wait(), again.wait())
    assert [job.attempt for job in ended] == [1, 1, 1]
    await is_whole(fault_client, database, running, recordings[0], tmp_path)


async def test_the_api_is_killed(fault_stack: Stack, fault_client: Client, database: Database, tmp_path: Path) -> None:
    """The SDK takes up its streams again; nobody notices."""
    recording = await upload(fault_client, tmp_path, 6, seed=5)
    job = await fault_client.separate(recording.track)
    listening = asyncio.create_task(job.save_live(tmp_path / "live"))
    watching = asyncio.create_task(job.wait())
    await first_piece(job)
    os.kill(pid_of(fault_stack, "api"), signal.SIGKILL)
    live = await listening
    assert (await watching).attempt == 1
    await is_whole(fault_client, database, job, recording, tmp_path)
    for name, path in live.items():
        np.testing.assert_allclose(read(path)[0], fake_stem(name, recording.samples), atol=1e-6)


async def test_a_job_that_kills_its_workers_is_given_up(
    fault_client: Client, database: Database, tmp_path: Path
) -> None:
    recording = await upload(fault_client, tmp_path, 1, seed=6)
    job = await fault_client.separate(recording.track)
    await job.wait()
    # Such a job as it is after its fifth worker was killed; the first of them knew nothing of attempts yet.
    again = uuid.uuid4()
    await database.execute(
        """INSERT INTO jobs (id, request_id, owner, kind, priority, track_id, spec, started_at,
                             state, attempt, failures, heartbeat_at)
           SELECT $2, $2, owner, kind, priority, track_id, spec, started_at,
                  'RUNNING', 5, 4, now() - interval '1 minute' FROM jobs WHERE id = $1""",
        uuid.UUID(job.name.removeprefix("jobs/")),
        again,
    )
    with pytest.raises(JobFailed) as failure:
        await (await fault_client.job(f"jobs/{again}")).wait()
    assert failure.value.reason == "ATTEMPTS_EXHAUSTED"
    assert (await fault_client.job(f"jobs/{again}")).job.error.retryable


def deadly(level: Level) -> Samples:
    """A buzz of that level, in which the first frame makes the model crash once it is normalised.

    That frame is opposite in its channels: the mono downmix, from which the level comes, does not show it.
    """
    # Whole segments: a shorter track would begin with silence.
    samples = np.full((2, GEOMETRY.length), 0.07, np.float32)
    samples[:, 1::2] *= -1
    samples[:, :2] = 0
    scale = float(1 / np.float32(level.std + 1e-8))
    near = np.float32(CRASH / scale + level.mean)
    for step in range(-50, 50):
        value = near + np.float32(step) * np.spacing(near)
        history = History(2, level.mean, scale)
        history.append(np.array([[value], [-value]], np.float32))
        normalised = np.empty((2, 1), np.float32)
        history.window(0, 1, normalised)
        if normalised[0, 0] == CRASH:
            samples[:, 0] = value, -value
            return samples
    raise AssertionError("no such sample")


async def test_a_deadly_track_fails_its_job_and_no_other(
    fault_client: Client, database: Database, tmp_path: Path
) -> None:
    harmless = deadly(Level(0.0, 0.07))
    harmless[:, 0] = 0
    same = await fault_client.upload(write(tmp_path / "harmless.wav", harmless, 44_100))
    row = await database.fetchrow("SELECT mean, std FROM recordings WHERE sha256 = $1", same.sha256)
    assert row is not None
    samples = deadly(Level(row["mean"], row["std"]))
    track = await fault_client.upload(write(tmp_path / "deadly.wav", samples, 44_100))
    assert await database.fetchrow("SELECT mean, std FROM recordings WHERE sha256 = $1", track.sha256) == row
    recordings = [await upload(fault_client, tmp_path, segments, seed=70 + segments) for segments in (8, 1)]
    beside = await fault_client.separate(recordings[0].track)
    await first_piece(beside)
    job = await fault_client.separate(track)
    behind = await fault_client.separate(recordings[1].track)
    with pytest.raises(JobFailed) as failure:
        await job.wait()
    assert failure.value.reason == "MODEL_FAILED"
    for other, recording in zip((beside, behind), recordings, strict=True):
        assert (await other.wait()).attempt == 1
        await is_whole(fault_client, database, other, recording, tmp_path)


async def test_no_live_audio_is_left_of_all_that(database: Database, objects: ObjectStore) -> None:
    async def no_pieces() -> bool:
        return not await database.fetchval("SELECT count(*) FROM live_pieces") and not await objects.find("live/")

    await eventually(no_pieces)
    assert await database.fetchval("SELECT count(*) FROM jobs WHERE state IN ('QUEUED', 'RUNNING')") == 0
