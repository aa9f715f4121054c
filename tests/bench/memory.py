"""Peak memory of servers on a short and on a long track; the models are fast fakes, all else is real."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import soundfile
from contrafact import Client
from contrafact.v1.job_pb2 import Job
from contrafact.v1.track_pb2 import Track

from servers.local import Stack
from servers.storage.database import connect
from servers.storage.objects import ObjectStore
from tests.bench.common import RATE, ROOT, keep, song
from tests.bench.processes import peak_mib, stubs
from tests.conftest import stack_settings
from tests.orchestrator.voice_files import shelve

FAKE_MODELS = ROOT / "tests" / "fixtures" / "model_repository"
MINUTES = (1, int(os.environ.get("MINUTES", "60")))
STEMS_SERVERS = ("worker", "api")
COVER_SERVERS = ("worker", "api", "mixer", "htdemucs", "rvc")


def write_long(path: Path, minutes: int) -> None:
    """Write that much music as 16-bit FLAC, a minute at a time."""
    music = (song(60.0) * 0.9).T
    with soundfile.SoundFile(path, "w", RATE, 2, "PCM_16", format="FLAC") as file:
        for _ in range(minutes):
            file.write(music)


@asynccontextmanager
async def serving(minutes: int, folder: Path) -> AsyncIterator[tuple[Stack, Client, Track]]:
    """A fresh stack, a client of it, and a track of that many minutes in it."""
    path = folder / f"{minutes}.flac"
    write_long(path, minutes)
    limit = {"CONTRAFACT_MAX_UPLOAD_BYTES": str(2**31)}
    stack = Stack(folder / f"stack-{minutes}", model_repository=FAKE_MODELS, weights=False, environment=limit)
    async with stack, Client(stack.api_address) as client:
        track = await client.upload(path)
        path.unlink()
        yield stack, client, track


def described(stack: Stack, track: Track, job: Job, servers: tuple[str, ...]) -> dict[str, Any]:
    """The track, the job and the peaks of these servers and models."""
    pids = {name: child.pid or 0 for name, child in stack.processes.items()} | stubs(stack)
    return {
        "frames": track.audio.frames,
        "upload_mib": round(track.size_bytes / 2**20, 1),
        **{f"{name}_peak_mib": round(peak_mib(pids[name]), 1) for name in servers},
        "seconds": round((job.end_time.ToNanoseconds() - job.start_time.ToNanoseconds()) / 1e9, 1),
    }


async def separated(minutes: int, folder: Path) -> dict[str, Any]:
    """Separate that many minutes, listening live."""
    async with serving(minutes, folder) as (stack, client, track):
        job = await client.separate(track, stems="all", format="opus")
        listened = dict.fromkeys(("vocals", "instrumental"), 0)
        async for message in job.stems_live(listened):
            listened["vocals"] += len(message.chunk.data)
        return described(stack, track, await job.wait(), STEMS_SERVERS)


async def covered(minutes: int, folder: Path) -> dict[str, Any]:
    """Make a cover of that many minutes, listening live."""
    async with serving(minutes, folder) as (stack, client, track):
        settings = stack_settings(stack)
        pool, objects = await connect(settings), ObjectStore(settings)
        voice = await shelve(pool, objects, gain=0.5)
        await pool.close()
        await objects.close()
        job = await client.cover(track, f"voices/{voice['id']}", format="opus")
        async for _ in job.stream_cover():
            pass
        return described(stack, track, await job.wait(), COVER_SERVERS)


def compare(name: str, run: Callable[[int, Path], Coroutine[Any, Any, dict[str, Any]]]) -> None:
    """Print and keep the peaks of both lengths, and their differences."""
    with tempfile.TemporaryDirectory(prefix="contrafact-memory-") as folder:
        short, long = (asyncio.run(run(minutes, Path(folder))) for minutes in MINUTES)
    peaks = [key for key in short if key.endswith("_peak_mib")]
    growth = {key.removesuffix("_peak_mib"): round(long[key] - short[key], 1) for key in peaks}
    keep(name, {f"{MINUTES[0]} min": short, f"{MINUTES[1]} min": long, "growth_mib": growth})


def measure() -> None:
    """Of separations."""
    compare("memory", separated)


def measure_cover() -> None:
    """Of covers."""
    compare("cover-memory", covered)
