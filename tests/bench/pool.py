"""The voice pool on a real Triton: a hundred voices through ten places under load, and what a voice of real size costs.

STREAMS=240 python -m tests.bench pool
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_repository.rvc.chunks import DEFAULT, HOP, RATE, Params
from servers.inference.conversion import Converter
from servers.inference.keeper import ModelKeeper
from servers.inference.voices import VoiceFiles, VoiceModel
from servers.local import Stack
from servers.media.blocks import Block
from servers.storage.objects import ObjectStore
from tests.bench import standins
from tests.bench.common import keep
from tests.bench.load import Seen, Watched, disagreements, drive, popular, settled, shelve, shelve_gains
from tests.bench.processes import rss_mib, stubs
from tests.conftest import FAKE_MODELS, stack_settings

VOICES, CAPACITY, AT_ONCE = 100, 10, 12
STREAMS = int(os.environ.get("STREAMS", "240"))  # of 1 to 4 chunks
LOAD_SECONDS, CHUNK_SECONDS = 0.05, 0.01  # that the fake model takes for a voice and for a chunk
PATTERNS: dict[str, dict[str, Any]] = {
    "lru": {"enabled": True, "strategy": "lru"},
    "ttl": {"enabled": True, "strategy": "ttl"},
    "lru+lfu": {"enabled": True, "strategy": "lru+lfu"},
    "disabled": {"enabled": False},
}


@dataclass(frozen=True)
class Hall:
    """What everything goes through."""

    stack: Stack
    triton: Watched
    model: VoiceModel
    converter: Converter
    objects: ObjectStore

    @property
    def rss(self) -> float:
        """Resident memory of the model's process, in MiB."""
        return rss_mib(stubs(self.stack)["rvc"])


@asynccontextmanager
async def hall(folder: Path, **options: Any) -> AsyncIterator[Hall]:
    """Triton, its voice model loaded, and the object store."""
    async with Stack(folder, only={"s3", "triton"}, **options) as stack:
        settings = stack_settings(stack)
        objects = ObjectStore(settings)
        async with Watched(settings) as triton:
            keeper = ModelKeeper(triton, settings.voice_model, settings)
            await keeper.wait()
            model = VoiceModel(triton, keeper)
            yield Hall(stack, triton, model, Converter(triton, keeper, settings), objects)
        await objects.close()


def percentiles(requests: list[Seen]) -> dict[str, float]:
    """Number and latency in ms of answered requests."""
    took = [1e3 * request.seconds for request in requests if request.seconds is not None]
    if not took:
        return {"requests": 0}
    middle, slow = (round(float(np.percentile(took, at)), 1) for at in (50, 95))
    return {"requests": len(took), "p50_ms": middle, "p95_ms": slow}


async def under_load(rooms: Hall, voices: list[tuple[VoiceFiles, float]], name: str) -> dict[str, Any]:
    """One pattern, from an empty pool and an empty disk."""
    for voice, _ in voices:
        await rooms.model.evict(voice.id)
    await rooms.model.configure({"capacity": CAPACITY, **PATTERNS[name]})
    before = await settled(rooms.model)
    sent, began, memory = len(rooms.triton.seen), time.perf_counter(), [rooms.rss]

    async def watch() -> None:
        while True:
            await asyncio.sleep(0.5)
            memory.append(rooms.rss)

    watching = asyncio.create_task(watch())
    streams = popular(VOICES, STREAMS, seed=0)
    failures = await drive(rooms.converter, rooms.model, voices, streams, at_once=AT_ONCE, name=name)
    seconds = time.perf_counter() - began
    watching.cancel()
    after = await settled(rooms.model)
    requests = list(rooms.triton.seen.values())[sent:]
    answered = [request for request in requests if request.seconds is not None]
    counters = {key: round(after["counters"][key] - before["counters"][key], 2) for key in after["counters"]}
    quarters = np.array_split(memory, min(4, len(memory)))
    return {
        "streams": len(streams),
        "requests": len(requests),
        "failed": len(requests) - len(answered) + len(failures),
        "failures": failures[:5],
        "counters": counters,
        "disagreements": disagreements(before, after, len(answered)),
        "hit_rate": round(counters["reused"] / max(len(answered), 1), 3),
        "told_to_ask_again": sum(request.refusals for request in requests),
        "warm": percentiles([request for request in answered if not request.refusals]),
        "cold": percentiles([request for request in answered if request.refusals]),
        "seconds": round(seconds, 1),
        "model_rss_mib": {
            "most_in_each_quarter": [round(float(part.max()), 1) for part in quarters],
            "growth": round(memory[-1] - memory[0], 1),
        },
    }


async def fake(folder: Path) -> dict[str, Any]:
    """All patterns, on one model process."""
    delays = {"CONTRAFACT_FAKE_RVC_LOAD_DELAY": str(LOAD_SECONDS), "CONTRAFACT_FAKE_RVC_DELAY": str(CHUNK_SECONDS)}
    async with hall(folder, model_repository=FAKE_MODELS, environment=delays) as rooms:
        voices = await shelve_gains(rooms.objects, VOICES)
        found = {}
        for name in PATTERNS:
            found[name] = await under_load(rooms, voices, name)
            print(f"  {name}: {found[name]}", flush=True)
        return found


async def use(rooms: Hall, voice: VoiceFiles, name: str) -> dict[str, float]:
    """Convert one chunk; how long that took, of which to load the voice, and its bytes."""
    samples = (0.1 * np.random.default_rng(0).standard_normal(DEFAULT.core * HOP)).astype(np.float32)

    async def blocks() -> AsyncIterator[Block]:
        yield Block(samples[np.newaxis], RATE, 0)

    began = time.perf_counter()
    async for _ in rooms.converter.convert(
        blocks(), voice, Params(), voice_rate=40_000, rate=RATE, rms_mix=1.0, priority=1, request_id=name
    ):
        pass
    seconds = time.perf_counter() - began
    (entry,) = [each for each in (await rooms.model.report())["voices"] if each["voice"] == str(voice.id)]
    return {"request_seconds": seconds, "load_seconds": entry["load_seconds"], "bytes": entry["bytes"]}


async def real(folder: Path) -> dict[str, Any]:
    """Three stand-in voices: each from the object store, from disk, and warm."""
    folder.mkdir()
    paths = [standins.voice(folder, seed) for seed in range(3)]
    began = time.perf_counter()
    async with hall(folder / "stack", environment=standins.environment(folder)) as rooms:
        ready, empty = time.perf_counter() - began, rooms.rss
        voices = [await shelve(rooms.objects, path.read_bytes()) for path in paths]
        await rooms.model.configure({"capacity": 1, "enabled": True})
        stages = {}
        for stage in ("from the object store", "from disk"):  # with one place, each pushes out the one before
            stages[stage] = [await use(rooms, voice, f"{stage} {voice.id}") for voice in voices]
        one = rooms.rss
        await rooms.model.configure({"capacity": 3})
        for voice in voices:
            await use(rooms, voice, f"filling {voice.id}")
        stages["warm"] = [await use(rooms, voice, f"warm {voice.id}") for voice in voices]
        three = rooms.rss
    return {
        "model_loaded_seconds": round(ready, 1),
        "file_bytes": paths[0].stat().st_size,
        "bytes_per_voice": stages["warm"][0]["bytes"],
        "model_rss_mib": {"no_voice": round(empty), "one_voice": round(one), "three_voices": round(three)},
        "load_seconds": {
            stage: [round(each["load_seconds"], 3) for each in found]
            for stage, found in stages.items()
            if stage != "warm"
        },
        "first_chunk_seconds": {
            stage: [round(each["request_seconds"], 3) for each in found] for stage, found in stages.items()
        },
    }


async def all_of(folder: Path) -> dict[str, Any]:
    """Both parts."""
    setup = {"voices": VOICES, "capacity": CAPACITY, "streams_at_once": AT_ONCE, "popularity": "Zipf, exponent 1"}
    times = {"fake_load_seconds": LOAD_SECONDS, "fake_chunk_seconds": CHUNK_SECONDS}
    return {**setup, **times, "patterns": await fake(folder / "fake"), "stand_ins": await real(folder / "real")}


def measure() -> None:
    """Print and keep what was seen."""
    with tempfile.TemporaryDirectory(prefix="contrafact-pool-") as folder:
        keep("pool", asyncio.run(all_of(Path(folder))))
