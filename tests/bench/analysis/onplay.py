"""What somebody waits for who plays a track: alone, with two hundred others, again, and while a library is scanned.

    ROUNDS=5 python -m tests.bench.analysis.onplay

The whole stack runs; only what separates and converts is fake, and idle.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import soundfile
from contrafact import Client
from contrafact.v1 import analysis_pb2, job_pb2
from contrafact.v1.track_pb2 import Track

from servers.local import Stack
from servers.storage.database import Pool, connect
from tests.bench.common import RATE, song
from tests.bench.ledger import tree_cpu
from tests.conftest import FAKE_MODELS, stack_settings

ROUNDS = int(os.environ.get("ROUNDS", "5"))
CALLERS = 200
CALLS = 2000  # of which percentiles are taken
SECONDS = 60.0  # of each recording
BACKLOG = int(os.environ.get("BACKLOG", "16"))  # recordings that are scanned meanwhile, at most

Row = dict[str, Any]


class Library:
    """Recordings, no two of which are the same: every analysis has to be made."""

    def __init__(self, client: Client, folder: Path) -> None:
        self._client, self._folder = client, folder
        self._numbers = itertools.count()

    async def track(self, seconds: float = SECONDS) -> Track:
        """A new one, uploaded."""
        number = next(self._numbers)
        path = self._folder / f"{number}.flac"
        samples = song(seconds) * np.float32(1 - number / 1000)
        await asyncio.to_thread(soundfile.write, path, samples.T, RATE)
        try:
            return await self._client.upload(path)
        finally:
            path.unlink()


async def ask(client: Client, track: Track, *, full: bool = False) -> tuple[analysis_pb2.GetAnalysisResponse, float]:
    """What GetAnalysis answers, and after how many seconds."""
    view = analysis_pb2.ANALYSIS_VIEW_FULL if full else analysis_pb2.ANALYSIS_VIEW_BASIC
    request = analysis_pb2.GetAnalysisRequest(track=track.name, view=view)
    began = time.perf_counter()
    answer = await client._connection.unary(client._connection.analyses.GetAnalysis, request)
    return answer, time.perf_counter() - began


class Costs:
    """CPU time of servers, from one call to the next."""

    def __init__(self, stack: Stack) -> None:
        self._pids = {name: stack.processes[name].pid for name in ("api", "postgres", "valkey")}
        self._before = self._now()

    def of(self, calls: int) -> Row:
        """Milliseconds of each server for one of so many calls since the last time."""
        before, self._before = self._before, self._now()
        return {f"{name}_cpu_ms": round(1000 * (self._before[name] - before[name]) / calls, 3) for name in self._pids}

    def _now(self) -> dict[str, float]:
        return {name: tree_cpu(pid) for name, pid in self._pids.items()}


def latencies(what: str, seconds: list[float]) -> Row:
    """A row of percentiles."""
    milliseconds = np.array(seconds) * 1000
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return {"what": what, "calls": len(seconds), "p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}


async def herd(client: Client, library: Library, pool: Pool) -> list[Row]:
    """Two hundred callers at once, of a track that nobody has analysed."""
    track = await library.track()
    began = time.perf_counter()
    answers = await asyncio.gather(*(ask(client, track) for _ in range(CALLERS)))
    await client.analyze(track)
    seconds = time.perf_counter() - began
    jobs = await pool.fetch("SELECT attempt FROM jobs WHERE track_id = $1", UUID(track.name.split("/")[1]))
    return [
        latencies(f"{CALLERS} callers at once: until the answer that it was begun", [took for _, took in answers]),
        {
            "what": f"{CALLERS} callers at once: analyses",
            "jobs": len(jobs),
            "attempts": sum(job["attempt"] for job in jobs),
            "seconds_until_made": round(seconds, 2),
        },
    ]


async def again(client: Client, library: Library, stack: Stack) -> list[Row]:
    """Of a track that is analysed."""
    track = await library.track()
    await client.analyze(track)
    rows = []
    for what, full in (("cached (BASIC)", False), ("of PostgreSQL (FULL)", True)):
        await ask(client, track, full=full)
        costs = Costs(stack)
        one = [(await ask(client, track, full=full))[1] for _ in range(CALLS)]
        rows.append(latencies(f"{what}: one after the other", one) | costs.of(CALLS))
        many: list[float] = []
        for _ in range(CALLS // CALLERS):
            many += [took for _, took in await asyncio.gather(*(ask(client, track, full=full) for _ in range(CALLERS)))]
        rows.append(latencies(f"{what}: {CALLERS} at once", many) | costs.of(CALLS))
    return rows


async def play(client: Client, library: Library) -> dict[str, float]:
    """Seconds from the request of one new analysis to its milestones, and of each stage."""
    track = await library.track()
    began = time.perf_counter()
    first, job_name = 0.0, ""
    async for response in client.watch_analysis(track):
        job_name = response.job or job_name
        if response.new_features and not first:
            first = time.perf_counter() - began
    end = time.perf_counter() - began
    job = (await client.job(job_name)).job
    waited = (job.start_time.ToNanoseconds() - job.create_time.ToNanoseconds()) / 1e9
    stages = {
        job_pb2.Stage.Name(timing.stage).removeprefix("STAGE_").lower(): timing.wall.ToNanoseconds() / 1e9
        for timing in job.timings
    }
    return {"queue": waited, **stages, "first_feature": first, "end": end}


async def played(client: Client, library: Library, what: str) -> Row:
    """Medians of several plays."""
    plays = [await play(client, library) for _ in range(ROUNDS)]
    medians = {f"{name}_s": round(statistics.median(each[name] for each in plays), 3) for name in plays[0]}
    return {"what": what, "rounds": ROUNDS, **medians}


@asynccontextmanager
async def scanning(client: Client, library: Library) -> AsyncIterator[None]:
    """As long as this lasts, a library is scanned, more of which is left than can be at work."""
    tracks = [await library.track(3 * SECONDS) for _ in range(BACKLOG)]
    scans = client.scan(tracks)
    scan = await anext(scans)
    while not [job async for job in client.jobs(states=["running"])]:
        await asyncio.sleep(0.1)
    try:
        yield
        left = (await client.scan_of(scan.name)).total - (await client.scan_of(scan.name)).analyzed
        if left < 4:
            raise RuntimeError(f"the scan was nearly done: {left} left; raise BACKLOG")
    finally:
        await client.cancel_scan(scan)
        await scans.aclose()


async def _table() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="contrafact-") as folder:
        async with Stack(Path(folder) / "stack", model_repository=FAKE_MODELS, weights=False) as stack:
            pool = await connect(stack_settings(stack))
            try:
                async with Client(stack.api_address) as client:
                    library = Library(client, Path(folder))
                    await play(client, library)  # what is loaded by the first
                    rows = await herd(client, library, pool) + await again(client, library, stack)
                    rows.append(await played(client, library, "one play, nothing else going on"))
                    async with scanning(client, library):
                        rows.append(await played(client, library, "one play, while a library is scanned"))
                    return rows
            finally:
                await pool.close()


def table() -> list[Row]:
    """Rows of what was measured; the last two are medians of ``ROUNDS`` plays, in seconds by stage."""
    return asyncio.run(_table())


if __name__ == "__main__":
    for row in table():
        print(row, flush=True)
