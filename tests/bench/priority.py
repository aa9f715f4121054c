"""What a person waits for while a library is being scanned, and while nothing else is going on.

    ROUNDS=10 python -m tests.bench priority         # a fake model that takes SEGMENT_SECONDS a segment
    REAL=1 ROUNDS=5 python -m tests.bench priority   # htdemucs

Background jobs hold all the slots that they may have, and more of them wait. Then a job is created and listened to,
again and again: once as INTERACTIVE ("after"), once as BACKGROUND, as if there were no priorities ("before").
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrafact import Client
from contrafact.v1.track_pb2 import Track

from servers.inference.separation import GEOMETRY
from servers.local import Stack
from servers.platform.settings import Settings
from tests.bench.common import RATE, keep
from tests.bench.cover import computed, grown
from tests.bench.ledger import table
from tests.conftest import FAKE_MODELS
from tests.orchestrator.test_separation import noise, write

REAL = os.environ.get("REAL") == "1"
ROUNDS = int(os.environ.get("ROUNDS", "10"))
SEGMENT_SECONDS = os.environ.get("SEGMENT_SECONDS", "0.5")
SEGMENTS = 2  # of the job that is waited for
BACKGROUND_SEGMENTS = 8
LONGEST = 9
SLOTS = Settings.model_fields["worker_concurrency"].default
BACKLOG = int(os.environ.get("BACKLOG", "8"))  # unfinished background jobs, the running ones included
_PATIENCE_SECONDS = 1800.0

Figures = dict[str, Any]


class Library:
    """Recordings of at most ``LONGEST`` segments, no two of which are the same: every job has to be done."""

    def __init__(self, client: Client, folder: Path) -> None:
        self._client = client
        self._folder = folder
        self._numbers = itertools.count()
        self._music = noise(GEOMETRY.stride * (LONGEST + 1), 2)

    async def track(self, segments: int) -> Track:
        """A new one, uploaded."""
        number = next(self._numbers)
        start = number * 101 % GEOMETRY.stride
        samples = self._music[:, start : start + GEOMETRY.stride * segments - 1000]
        path = await asyncio.to_thread(write, self._folder / f"{number}.wav", samples, RATE)
        try:
            return await self._client.upload(path)
        finally:
            path.unlink()


@dataclass(frozen=True)
class Heard:
    """Seconds from the request to the first audio of a stem, and to the last byte of all."""

    first: float
    end: float


async def ask(client: Client, library: Library, priority: str) -> Heard:
    """Have one track separated, and listen."""
    track = await library.track(SEGMENTS)
    async with asyncio.timeout(_PATIENCE_SECONDS):
        began, first = time.perf_counter(), 0.0
        job = await client.separate(track, priority=priority)
        async for response in job.stems_live():
            if response.frames_ready and not first:
                first = time.perf_counter()
        end = time.perf_counter()
        await job.wait()
    await client.delete_track(track.name)
    return Heard(first - began, end - began)


@asynccontextmanager
async def scanning(client: Client, library: Library) -> AsyncIterator[None]:
    """As long as this lasts, ``BACKLOG`` background jobs run or wait."""
    full = asyncio.Semaphore(0)

    async def scan() -> None:
        while True:
            track = await library.track(BACKGROUND_SEGMENTS)
            job = await client.separate(track, priority="background")
            full.release()
            await job.wait()
            await client.delete_track(track.name)

    scanners = [asyncio.create_task(scan()) for _ in range(BACKLOG)]
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            for _ in scanners:
                await full.acquire()
        yield
    finally:
        for scanner in scanners:
            scanner.cancel()
        ended = await asyncio.gather(*scanners, return_exceptions=True)
        async for job in client.jobs(states=["queued", "running"]):
            await (await client.job(job.name)).cancel()
    if failures := [error for error in ended if not isinstance(error, asyncio.CancelledError)]:
        raise RuntimeError(f"background jobs did not go on: {failures}")


async def saturated(client: Client) -> None:
    """Wait until background jobs run in all their slots and half of the others wait."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        for state, wanted in (("running", SLOTS), ("queued", (BACKLOG - SLOTS) // 2)):
            while sum([1 async for _ in client.jobs(states=[state])]) < wanted:
                await asyncio.sleep(0.1)


async def rounds(client: Client, library: Library, priority: str, *, busy: bool = False) -> list[Heard]:
    """One after the other; ``busy``: each while background jobs hold all their slots."""
    heard = []
    for _ in range(ROUNDS):
        if busy:
            await saturated(client)
        heard.append(await ask(client, library, priority))
    return heard


def added(heard: list[Heard], idle: list[Heard], segment: float) -> Figures:
    """Medians and maxima in seconds, and what is more than on an idle stack, in segments."""
    figures: Figures = {}
    for what in ("first", "end"):
        seconds = [float(getattr(each, what)) for each in heard]
        usual = statistics.median(float(getattr(each, what)) for each in idle)
        middle, most = statistics.median(seconds), max(seconds)
        figures[what] = {
            "median_seconds": round(middle, 3),
            "max_seconds": round(most, 3),
            "added_segments_median": round((middle - usual) / segment, 2),
            "added_segments_max": round((most - usual) / segment, 2),
        }
    return figures


async def measured(folder: Path) -> Figures:
    """All three, on one stack."""
    options: dict[str, Any] = {} if REAL else {"model_repository": FAKE_MODELS, "weights": False}
    environment = {"CONTRAFACT_FAKE_DELAY": SEGMENT_SECONDS}
    async with Stack(folder, environment=environment, **options) as stack, Client(stack.api_address) as client:
        library = Library(client, folder)
        await ask(client, library, "interactive")  # loads the model
        before = await computed(stack)
        idle = await rounds(client, library, "interactive")
        cost = grown(before, await computed(stack))
        segment = cost["htdemucs_seconds"] / (ROUNDS * SEGMENTS)
        async with scanning(client, library):
            after = await rounds(client, library, "interactive", busy=True)
            without = await rounds(client, library, "background", busy=True)
    found = {"idle": idle, "after": after, "before": without}
    figures = {name: added(heard, idle, segment) for name, heard in found.items()}
    rows = [[name, *entry["first"].values(), *entry["end"].values()] for name, entry in figures.items()]
    each = [f"{what} {word}" for what in ("first", "end") for word in ("s", "max s", "+segments", "+segments max")]
    table([["", *each], *rows])
    return {
        "model": "htdemucs" if REAL else "fake",
        "segment_seconds": round(segment, 3),
        "segments": SEGMENTS,
        "background_segments": BACKGROUND_SEGMENTS,
        "unfinished_background_jobs": BACKLOG,
        "rounds": ROUNDS,
        **figures,
    }


def measure() -> None:
    """Print and keep what was seen."""
    with tempfile.TemporaryDirectory(prefix="contrafact-priority-") as folder:
        keep("priority", asyncio.run(measured(Path(folder) / "stack")))
