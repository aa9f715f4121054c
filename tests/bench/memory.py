"""Peak memory of a worker on a short and on a long track; the model is a fast fake, all else is real."""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path
from typing import Any

import soundfile
from contrafact import Client

from servers.local import Stack
from tests.bench.common import RATE, ROOT, keep, song

FAKE_MODELS = ROOT / "tests" / "fixtures" / "model_repository"
MINUTES = (1, 60)


def write_long(path: Path, minutes: int) -> None:
    """Write that much music as 16-bit FLAC, a minute at a time."""
    music = (song(60.0) * 0.9).T
    with soundfile.SoundFile(path, "w", RATE, 2, "PCM_16", format="FLAC") as file:
        for _ in range(minutes):
            file.write(music)


def peak_mib(pid: int) -> float:
    """Peak resident memory of a process since its start, in MiB, without what it shares with Triton."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


async def run(minutes: int, folder: Path) -> dict[str, Any]:
    """Separate that many minutes in a fresh stack, listening live."""
    path = folder / f"{minutes}.flac"
    write_long(path, minutes)
    limit = {"CONTRAFACT_MAX_UPLOAD_BYTES": str(2**31)}
    stack = Stack(folder / f"stack-{minutes}", model_repository=FAKE_MODELS, weights=False, environment=limit)
    async with stack, Client(stack.api_address) as client:
        track = await client.upload(path)
        path.unlink()
        job = await client.separate(track, stems="all", format="opus")
        listened = dict.fromkeys(("vocals", "instrumental"), 0)
        async for message in job.stems_live(listened):
            listened["vocals"] += len(message.chunk.data)
        done = await job.wait()
        return {
            "frames": track.audio.frames,
            "upload_mib": round(track.size_bytes / 2**20, 1),
            "worker_peak_mib": round(peak_mib(stack.processes["worker"].pid or 0), 1),
            "api_peak_mib": round(peak_mib(stack.processes["api"].pid or 0), 1),
            "seconds": round((done.end_time.ToNanoseconds() - done.start_time.ToNanoseconds()) / 1e9, 1),
        }


def measure() -> None:
    """Print and keep both peaks and their difference."""
    with tempfile.TemporaryDirectory(prefix="contrafact-memory-") as folder:
        short, long = (asyncio.run(run(minutes, Path(folder))) for minutes in MINUTES)
    growth = {
        server: round(long[f"{server}_peak_mib"] - short[f"{server}_peak_mib"], 1) for server in ("worker", "api")
    }
    keep("memory", {f"{MINUTES[0]} min": short, f"{MINUTES[1]} min": long, "growth_mib": growth})
