"""Which jobs run, when, and how often: on the whole stack, with two workers and two API servers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from contrafact import Client, JobCancelled, NotFound, ResourceExhausted, Unavailable
from contrafact.v1 import job_pb2
from redis.asyncio import Redis

from servers.inference.separation import GEOMETRY
from servers.local import Stack, running_stack
from servers.local.ports import free_port
from servers.storage.database import Pool, connect, exclusive
from servers.storage.keys import ready_channel
from tests.conftest import FAKE_MODELS, stack_settings
from tests.orchestrator.test_separation import fake_stem, noise, read, write

MOST = 6

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model writes a line for each segment."""
    return tmp_path_factory.mktemp("log") / "segments"


@pytest.fixture(scope="module")
def busy_stack(tmp_path_factory: pytest.TempPathFactory, segments: Path) -> Iterator[Stack]:
    """Two workers with room for one job each, and for another of a person who waits."""
    with running_stack(
        tmp_path_factory.mktemp("busy"),
        model_repository=FAKE_MODELS,
        weights=False,
        workers=2,
        environment={
            "CONTRAFACT_FAKE_DELAY": "0.3",
            "CONTRAFACT_FAKE_LOG": str(segments),
            "CONTRAFACT_WORKER_CONCURRENCY": "1",
            "CONTRAFACT_MAX_QUEUED_JOBS_PER_OWNER": str(MOST),
        },
    ) as running:
        yield running


@pytest.fixture
async def pool(busy_stack: Stack) -> AsyncIterator[Pool]:
    """Connections to PostgreSQL: who holds a recording keeps what is made of it from being published."""
    made = await connect(stack_settings(busy_stack))
    yield made
    await made.close()


@pytest.fixture
async def here(busy_stack: Stack) -> AsyncIterator[Client]:
    """A client of the first API server."""
    async with Client(busy_stack.api_address) as client:
        yield client


@pytest.fixture
async def there(busy_stack: Stack) -> AsyncIterator[Client]:
    """A client of a second one."""
    port = str(free_port())
    environment = {**os.environ, **busy_stack.environment, "CONTRAFACT_API_PORT": port, "CONTRAFACT_METRICS_PORT": "0"}
    server = await asyncio.create_subprocess_exec(sys.executable, "-m", "servers.orchestrator.api", env=environment)
    try:
        async with Client(f"127.0.0.1:{port}") as client:
            await listening(client)
            yield client
    finally:
        server.send_signal(signal.SIGTERM)
        await server.wait()


async def listening(client: Client) -> None:
    """Wait until the server answers."""
    while True:
        try:
            await client.job(f"jobs/{UUID(int=0)}")
        except NotFound:
            return
        except Unavailable:
            await asyncio.sleep(0.1)


async def upload(client: Client, folder: Path, segments: float, seed: int) -> tuple[Any, Any]:
    """A track of so many segments, and its samples."""
    samples = noise(int(GEOMETRY.stride * segments) - 1000, 1, seed=seed)
    return await client.upload(write(folder / f"{seed}.wav", samples, 44_100)), samples


async def first_piece(job: Any) -> None:
    """Wait until some audio of the job can be heard."""
    async for event in job.watch():
        if event.HasField("piece"):
            return


async def events_of(job: Any) -> list[job_pb2.JobEvent]:
    """All events until the job's end."""
    return [event async for event in job.watch()]


async def test_the_same_work_is_done_once(
    here: Client, there: Client, busy_stack: Stack, segments: Path, tmp_path: Path
) -> None:
    """Asked for five times at once, on two servers: one runs, all see it run, and hear it, and have its result."""
    track, samples = await upload(here, tmp_path, 20, seed=900)
    before = len(segments.read_text().splitlines()) if segments.exists() else 0
    async with Redis.from_url(stack_settings(busy_stack).redis_url) as redis, redis.pubsub() as signals:
        await signals.subscribe(ready_channel("SEPARATE", UUID(track.name.removeprefix("tracks/"))))
        leader = await here.separate(track, format="wav")
        await first_piece(leader)
        followers = [await client.separate(track, format="wav") for client in (here, there, here, there)]
        assert {follower.job.state for follower in followers} == {job_pb2.JOB_STATE_RUNNING}
        listening = asyncio.create_task(followers[1].save_live(tmp_path / "live"))
        watched = await asyncio.gather(*(events_of(job) for job in followers))
        files = await listening
        told: list[str] = []
        async with asyncio.timeout(60):
            while len(told) < 5:
                if message := await signals.get_message(ignore_subscribe_messages=True, timeout=1):
                    told.append(message["data"].decode())
    assert sorted(told) == sorted(job.name for job in (leader, *followers))
    assert len(segments.read_text().splitlines()) - before == 20
    for events in watched:
        assert sum(event.HasField("progress") for event in events) > 2
        last = events[-1].job
        assert last.state == job_pb2.JOB_STATE_SUCCEEDED
        assert len(last.artifacts) == 4
    for name, path in files.items():
        np.testing.assert_allclose(read(path)[0], fake_stem(name, samples), atol=1e-6)


async def test_a_follower_takes_over(here: Client, pool: Pool, segments: Path, tmp_path: Path) -> None:
    """When the leader is cancelled: and goes on where he was."""
    track, samples = await upload(here, tmp_path, 8, seed=901)
    before = len(segments.read_text().splitlines()) if segments.exists() else 0
    async with exclusive(pool, track.sha256):  # the leader does not end before
        leader = await here.separate(track, format="wav")
        await first_piece(leader)
        follower = await here.separate(track, format="wav")
        while len(segments.read_text().splitlines()) < before + 5:
            await asyncio.sleep(0.02)
        await leader.cancel()
        with pytest.raises(JobCancelled):
            await leader.wait()
    files = await follower.save_live(tmp_path / "live")
    assert (await follower.wait()).attempt == 1
    for name, path in files.items():
        np.testing.assert_allclose(read(path)[0], fake_stem(name, samples), atol=1e-6)


async def test_who_has_too_many_waiting_is_told_so(here: Client, pool: Pool, tmp_path: Path) -> None:
    tracks = [(await upload(here, tmp_path, 1 + n / 100, seed=910 + n))[0] for n in range(MOST + 4)]
    # Neither of the two workers ends what it begins with.
    async with exclusive(pool, tracks[0].sha256), exclusive(pool, tracks[1].sha256):
        jobs = [await here.separate(track, priority="background") for track in tracks[:MOST]]
        with pytest.raises(ResourceExhausted) as refused:
            jobs += [await here.separate(track, priority="background") for track in tracks[MOST:]]
        assert refused.value.reason == "TOO_MANY_JOBS"
        assert refused.value.retry_after >= 1
        assert [(await here.job(job.name)).job.state for job in jobs].count(job_pb2.JOB_STATE_QUEUED) >= MOST - 2
        for job in jobs:
            await job.cancel()


async def test_jobs_run_while_redis_is_away(busy_stack: Stack, here: Client, tmp_path: Path) -> None:
    tracks = [(await upload(here, tmp_path, 1, seed=940 + n))[0] for n in range(2)]
    valkey = busy_stack.processes["valkey"].pid
    os.kill(valkey, signal.SIGSTOP)
    try:
        jobs = [await here.separate(track) for track in tracks]
        for job in jobs:
            while (await here.job(job.name)).job.state != job_pb2.JOB_STATE_SUCCEEDED:
                await asyncio.sleep(0.2)
    finally:
        os.kill(valkey, signal.SIGCONT)
    assert [(await job.wait()).attempt for job in jobs] == [1, 1]
