"""How soon watchers hear of what a job does, and what they cost: one, and a thousand of the same job.

``python -m tests.bench.watching ADDRESS JOB WATCHERS`` is a process of watchers.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
from contrafact.v1 import job_pb2, job_pb2_grpc

from servers.local import Stack
from servers.orchestrator.jobs.events import JobEvents
from servers.orchestrator.jobs.events import connect as connect_redis
from servers.storage.database import Pool, connect
from tests.bench import backlog
from tests.bench.common import ROOT
from tests.bench.ledger import Ledger, Reading, milliseconds, table
from tests.conftest import FAKE_MODELS, stack_settings

WATCHERS = [int(text) for text in os.environ.get("WATCHERS", "1,1000").split(",")]
EVENTS = int(os.environ.get("EVENTS", "20"))
EVENT_SECONDS = 0.5  # between two of them
_OF_A_CHANNEL = 50
_SCALE = 1e6  # of the number of an event, which it carries as its progress
_PATIENCE_SECONDS = 120.0

Figures = dict[str, Any]


async def watch(address: str, job: str, count: int) -> dict[int, list[float]]:
    """Watch a job so many times until its end; when (in seconds since the epoch) each of its events arrived."""
    arrived: dict[int, list[float]] = {}
    waiting = count

    async def one(stub: job_pb2_grpc.JobServiceAsyncStub) -> None:
        nonlocal waiting
        begun = False
        async for response in stub.WatchJob(job_pb2.WatchJobRequest(name=job), timeout=600):
            if not begun:
                begun, waiting = True, waiting - 1
                if not waiting:
                    print("watching", flush=True)
            if response.event.HasField("progress"):
                number = round(response.event.progress.fraction * _SCALE)
                arrived.setdefault(number, []).append(time.time())

    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(-(-count // _OF_A_CHANNEL))]
    try:
        stubs = [job_pb2_grpc.JobServiceStub(channel) for channel in channels]
        await asyncio.gather(*(one(stubs[number // _OF_A_CHANNEL]) for number in range(count)))
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))
    return arrived


async def running_job(pool: Pool, track: UUID) -> UUID:
    """A job that nobody works on, and that nobody takes for lost."""
    job = uuid4()
    await pool.execute(
        """INSERT INTO jobs (id, owner, request_id, kind, priority, state, track_id, spec, attempt, heartbeat_at,
                             started_at, claimed_at)
           VALUES ($1, 'local', $1, $2, 'INTERACTIVE', 'RUNNING', $3, $4, 1, now() + interval '1 h', now(), now())""",
        job,
        backlog.KIND,
        track,
        backlog.SPEC,
    )
    return job


async def end(pool: Pool, job: UUID) -> None:
    """The job has succeeded, as PostgreSQL tells all who watch."""
    await pool.execute("UPDATE jobs SET state = 'SUCCEEDED', ended_at = now() WHERE id = $1", job)


async def publish(events: JobEvents, job: UUID) -> list[float]:
    """Publish events as a worker does; when each was."""
    sent = []
    for number in range(EVENTS):
        progress = job_pb2.Progress(stage=job_pb2.STAGE_SEPARATE, fraction=number / _SCALE)
        sent.append(time.time())
        await events.publish([job], job_pb2.JobEvent(progress=progress))
        await asyncio.sleep(EVENT_SECONDS)
    return sent


def for_events(before: Reading, busy: Reading, idle: Reading) -> Figures:
    """What one event costs: what was done while events were sent, less what is done while none is."""
    sent, none = busy.since(before, EVENTS), idle.since(busy, EVENTS)
    commands = Counter(sent["commands_by_name"])
    commands.subtract(none["commands_by_name"])
    return {
        "transactions": round(sent["transactions"] - none["transactions"], 2),
        "commands": {name: round(number, 2) for name, number in commands.items() if abs(number) > 0.1},
        "cpu_ms": {name: round(sent["cpu_ms"][name] - none["cpu_ms"][name], 2) for name in ("api", "valkey")},
    }


async def watched(stack: Stack, pool: Pool, track: UUID, count: int) -> Figures:
    """One job with so many watchers in a process of their own."""
    job = await running_job(pool, track)
    command = (sys.executable, "-m", "tests.bench.watching", stack.api_address, f"jobs/{job}", str(count))
    redis = connect_redis(stack_settings(stack))
    child = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, limit=2**26)
    assert child.stdout is not None
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await child.stdout.readline()
        async with Ledger(stack) as ledger:
            before = await ledger.read()
            sent = await publish(JobEvents(redis, stack_settings(stack)), job)
            busy = await ledger.read()
            await asyncio.sleep(EVENTS * EVENT_SECONDS)
            idle = await ledger.read()
        await end(pool, job)
        async with asyncio.timeout(_PATIENCE_SECONDS):
            arrived = {int(number): times for number, times in json.loads(await child.stdout.read()).items()}
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
        await redis.aclose()
    took = [at - sent[number] for number, times in arrived.items() for at in times]
    if len(took) != count * EVENTS:
        raise RuntimeError(f"{len(took)} of {count * EVENTS} events arrived")
    seconds = idle.at - busy.at
    cpu = round(100 * (idle.cpu["api"] - busy.cpu["api"]) / seconds, 1)
    last = [max(times) - sent[number] for number, times in arrived.items()]
    return {
        **milliseconds(took),
        "last_watcher_median_ms": milliseconds(last)["median_ms"],
        "of_each_event": for_events(before, busy, idle),
        "without_events": {
            "api_cpu_percent": cpu,
            "transactions_per_s": round((idle.transactions - busy.transactions) / seconds, 1),
            "commands_per_s": round((idle.commands - busy.commands).total() / seconds, 1),
        },
    }


async def measured(folder: Path) -> Figures:
    """Latency and cost, by number of watchers."""
    async with Stack(folder, model_repository=FAKE_MODELS, weights=False) as stack:
        pool = await connect(stack_settings(stack))
        try:
            track = await backlog.track(pool)
            found = {f"{count}": await watched(stack, pool, track, count) for count in WATCHERS}
        finally:
            await pool.close()
    rows: list[list[object]] = [["watchers", "median ms", "p99 ms", "last ms", "API CPU ms", "Redis", "PostgreSQL"]]
    for count, entry in found.items():
        each = entry["of_each_event"]
        asked = [each["cpu_ms"]["api"], float(sum(each["commands"].values())), each["transactions"]]
        rows.append([count, entry["median_ms"], entry["p99_ms"], entry["last_watcher_median_ms"], *asked])
    table(rows)
    return {"events": EVENTS, "by_watchers": found}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(watch(sys.argv[1], sys.argv[2], int(sys.argv[3])))), flush=True)
