"""Jobs are cancelled in every stage: they end at once, nothing of them is left, and what was finished stays."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from contrafact import Client, JobCancelled
from contrafact.v1 import job_pb2, track_pb2

from servers.inference.separation import GEOMETRY
from servers.local import Stack
from servers.platform.settings import Settings
from tests.fault.leftovers import regions_of
from tests.fault.test_jobs_survive import Database, eventually, first_piece, pid_of
from tests.orchestrator.test_covers import PLAIN, shelf
from tests.orchestrator.test_separation import noise, write

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

LONG, SHORT = GEOMETRY.stride * 8, 4000  # frames
AT_MOST_LENT = 8  # regions of shared memory that all of a worker's jobs use at once


@dataclass
class System:
    """The stack, and what jobs may have left in it."""

    stack: Stack
    client: Client
    temporary: Path

    def metrics(self, name: str) -> str:
        """What a server exports."""
        child = self.stack.processes[name]
        port = (
            re.findall(r"--metrics-port=(\d+)", " ".join(child.command.arguments))
            or re.findall(
                r'"port": (\d+), "event": "metrics"|"event": "metrics".*?"port": (\d+)', child.log.read_text()
            )[-1]
        )
        number = port[0] or port[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{number}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    async def total(self, server: str, metric: str) -> float:
        """The sum of all values of a metric."""
        text = await asyncio.to_thread(self.metrics, server)
        return sum(float(value) for value in re.findall(rf"^{metric}{{.*}} (\S+)$", text, re.M))

    async def left(self) -> dict[str, float]:
        """What is still there of jobs, none of which runs, by what it is."""
        return {
            "requests": await self.total("worker", "contrafact_slots_held"),
            "waiting": await self.total("worker", "contrafact_slots_waiting"),
            "in Triton": await self.total("triton", "nv_inference_pending_request_count"),
            "mixes": await self.total("mixer", "contrafact_rpcs_active"),
            "files": len(list(self.temporary.glob("contrafact-scratch-*/*"))),
            "memory": max(0, len(regions_of({pid_of(self.stack, "worker")})) - AT_MOST_LENT),
        }

    async def free(self) -> bool:
        """Whether nothing is left."""
        return not any((await self.left()).values())


@pytest.fixture
async def system(fault_stack: Stack, fault_client: Client, temporary: Path) -> System:
    """What the jobs run in."""
    return System(fault_stack, fault_client, temporary)


@asynccontextmanager
async def stopped(stack: Stack, name: str) -> AsyncIterator[None]:
    """A server does nothing for as long as the context lasts."""
    pid = pid_of(stack, name)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def in_stage(job: Any, name: str) -> None:
    """Wait until a job is in a stage."""
    async for event in job.watch():
        if event.HasField("progress") and job_pb2.Stage.Name(event.progress.stage) == f"STAGE_{name}":
            return
        assert not (event.HasField("job") and event.job.HasField("end_time")), f"it ended before: {event.job}"


async def cancelled(job: Any, stage: str) -> float:
    """Cancel a job and wait for its end; when it was cancelled."""
    began = time.monotonic()
    await job.cancel()
    with pytest.raises(JobCancelled):
        await job.wait()
    print(f"\n{stage}: cancelled in {time.monotonic() - began:.2f} s", end="")
    return began


async def all_free(system: System, began: float) -> None:
    """Wait until nothing is left of what was cancelled then."""
    try:
        await eventually(system.free)
    except AssertionError:
        raise AssertionError(f"still there: {await system.left()}") from None
    print(f", all free after {time.monotonic() - began:.2f} s")


async def upload(client: Client, folder: Path, frames: int) -> track_pb2.Track:
    """A recording that nobody has uploaded before."""
    path = write(folder / f"{uuid.uuid4()}.wav", noise(frames, 1, seed=uuid.uuid4().int % 2**32), 44_100)
    return await client.upload(path)


async def test_while_it_is_fetched(system: System, tmp_path: Path) -> None:
    track = await upload(system.client, tmp_path, LONG)
    async with stopped(system.stack, "s3"):
        job = await system.client.separate(track)
        await in_stage(job, "FETCH")
        began = await cancelled(job, "FETCH")
        await all_free(system, began)
    await (await system.client.separate(track)).wait()


async def test_while_a_model_is_loaded(system: System, tmp_path: Path, fault_settings: Settings) -> None:
    track = await upload(system.client, tmp_path, SHORT)
    async with shelf(fault_settings) as voice:
        name = await voice(gain=0.5)
    async with stopped(system.stack, "triton"):
        job = await system.client.cover(track, name, **PLAIN)
        await in_stage(job, "LOAD_MODEL")
        began = await cancelled(job, "LOAD_MODEL")
    await all_free(system, began)
    await (await system.client.cover(track, name, **PLAIN)).wait()


async def test_while_it_is_separated(system: System, tmp_path: Path) -> None:
    track = await upload(system.client, tmp_path, LONG)
    for _ in range(4):  # what is left of one would not be noticed
        job = await system.client.separate(track)
        await first_piece(job)
        began = await cancelled(job, "SEPARATE")
        await all_free(system, began)
    await (await system.client.separate(track)).wait()


async def test_while_it_is_converted(
    system: System, tmp_path: Path, fault_settings: Settings, database: Database
) -> None:
    """The vocals, which were whole, stay: the next cover of the track begins with them."""
    track = await upload(system.client, tmp_path, LONG)
    async with shelf(fault_settings) as voice:
        name = await voice(gain=0.5)
    job = await system.client.cover(track, name, **PLAIN)
    await in_stage(job, "CONVERT")

    async def stored() -> bool:
        return bool(await database.fetchval("SELECT count(*) FROM stems WHERE sha256 = $1", track.sha256))

    await eventually(stored)
    began = await cancelled(job, "CONVERT")
    await all_free(system, began)
    done = await (await system.client.cover(track, name, **PLAIN)).wait()
    assert job_pb2.STAGE_SEPARATE not in [timing.stage for timing in done.timings]


async def test_while_it_is_mixed(system: System, tmp_path: Path, fault_settings: Settings) -> None:
    """By a mixer that does nothing any more."""
    track = await upload(system.client, tmp_path, LONG)
    async with shelf(fault_settings) as voice:
        name = await voice(gain=0.5)
    job = await system.client.cover(track, name, **PLAIN)
    async for event in job.watch():  # the first piece of the cover, most of which is still to be separated
        if event.HasField("piece") and not event.piece.stem:
            break
    async with stopped(system.stack, "mixer"):
        began = await cancelled(job, "MIX")
    await all_free(system, began)
    await (await system.client.cover(track, name, **PLAIN)).wait()


async def test_while_it_is_published(system: System, tmp_path: Path, database: Database) -> None:
    track = await upload(system.client, tmp_path, SHORT)
    # As another does who publishes the same.
    await database.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", track.sha256)
    job = await system.client.separate(track)
    await in_stage(job, "PUBLISH")
    began = await cancelled(job, "PUBLISH")
    await all_free(system, began)
    await database.execute("SELECT pg_advisory_unlock(hashtextextended($1, 0))", track.sha256)
    await (await system.client.separate(track)).wait()


async def test_while_it_waits(system: System, tmp_path: Path) -> None:
    tracks = [await upload(system.client, tmp_path, LONG) for _ in range(5)]
    jobs = [await system.client.separate(track) for track in tracks]
    await asyncio.gather(*(in_stage(job, "SEPARATE") for job in jobs[:2]))
    await cancelled(jobs[-1], "in the queue")
    async with AsyncExitStack() as stack:  # and all the others, wherever they are
        for job in jobs[:-1]:
            stack.push_async_callback(cancelled, job, "of several")
    await all_free(system, time.monotonic())
