"""How fast the mixer mixes, over the wire, and what memory a long mix takes.

``SECONDS`` of music (60) a mix, ``ROUNDS`` (3) of each, ``MINUTES`` of the long mix (60).
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from contrafact.engine.v1.mixer_pb2 import NORMALIZATION_LUFS, NORMALIZATION_PEAK, MixReport, MixSpec

from servers.media.blocks import BLOCK_FRAMES, Block
from servers.media.loudness import LoudnessMeter
from servers.media.truepeak import TruePeakMeter
from servers.orchestrator.engines.mixer import Mixer
from tests.bench.common import RATE, Samples, keep, song
from tests.bench.processes import peak_mib
from tests.mixer.conftest import MixerProcess

SECONDS = float(os.environ.get("SECONDS", "60"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
MINUTES = (1, int(os.environ.get("MINUTES", "60")))
CEILING_DB = -1.0
INPUTS = (4, 16)


def spec_of(count: int, frames: int, *, rate: int = RATE, **values: Any) -> MixSpec:
    """So many stereo inputs of one rate, softer the more they are, moved and faded, in a mix at 44.1 kHz."""
    spec = MixSpec(sample_rate=RATE, channels=2, frames=round(frames * RATE / rate), **values)
    for place in range(count):
        spec.inputs.add(
            name=f"i{place}", gain_db=-6.0 - place / 4, pan=place / count, fade_in_frames=RATE, fade_out_frames=RATE
        )
        if rate != RATE:
            spec.inputs[place].MergeFrom(type(spec.inputs[place])(sample_rate=rate, frames=frames))
    return spec


async def played(music: Samples, frames: int, rate: int) -> AsyncIterator[Block]:
    """So many frames of ``music``, again and again."""
    start = 0
    while start < frames:
        at = start % music.shape[1]
        part = music[:, at : at + min(BLOCK_FRAMES, frames - start)]
        yield Block(part, rate, start)
        start += part.shape[1]


async def mixed(client: Mixer, spec: MixSpec, music: Samples) -> MixReport:
    """Mix ``music`` with itself; drop the mix."""
    inputs = {
        asked.name: played(music, asked.frames or spec.frames, asked.sample_rate or RATE) for asked in spec.inputs
    }
    report = None
    async for part in client.mix(spec, inputs):
        report = part if isinstance(part, MixReport) else report
    assert report is not None
    return report


async def timed(server: MixerProcess, client: Mixer, specs: list[MixSpec], music: Samples) -> dict[str, float]:
    """Times real time, by the wall and by the server's CPU, of mixes one after the other; medians.

    Each takes the gain that the one before it has reported.
    """
    walls, costs = [], []
    for _ in range(ROUNDS):
        began, spent = time.perf_counter(), server.cpu_seconds()
        gain = 0.0
        for spec in specs:
            spec.gain_db = gain
            gain = (await mixed(client, spec, music)).gain_db
        walls.append(time.perf_counter() - began)
        costs.append(server.cpu_seconds() - spent)
    seconds = specs[0].frames / RATE
    return {
        "times_real_time": round(seconds / statistics.median(walls), 1),
        "cpu_seconds_a_minute": round(60 * statistics.median(costs) / seconds, 3),
    }


def plain(count: int, music: Samples) -> dict[str, float]:
    """What one would write for whole arrays in memory: gains and a sum, then both meters."""
    spec, walls = spec_of(count, music.shape[1]), []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        total = np.zeros(music.shape)
        for asked in spec.inputs:
            total += music * 10 ** (asked.gain_db / 20)
        result = total.astype(np.float32)
        LoudnessMeter(RATE, 2).process(result)
        TruePeakMeter(2).process(result)
        walls.append(time.perf_counter() - began)
    return {"times_real_time": round(SECONDS / statistics.median(walls), 1)}


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[MixerProcess, Mixer]]:
    """A fresh mixer and a client of it."""
    with tempfile.TemporaryDirectory(prefix="contrafact-mixer-") as folder:
        server = MixerProcess(Path(folder), LOG_LEVEL="info")
        await server.child.start()
        try:
            async with Mixer(server.settings) as client:
                yield server, client
        finally:
            await server.child.stop()


async def speeds(music: Samples) -> dict[str, Any]:
    """Of each kind of mix, by the number of inputs."""
    frames, result = music.shape[1], {}
    async with serving() as (server, client):
        await mixed(client, spec_of(1, RATE), music)
        for count in INPUTS:
            limited: dict[str, Any] = {"true_peak_ceiling_db": CEILING_DB}
            lufs: dict[str, Any] = {"normalization": NORMALIZATION_LUFS, "target_lufs": -14.0, **limited}
            peak: dict[str, Any] = {"normalization": NORMALIZATION_PEAK}
            kinds = {
                "sum": [spec_of(count, frames)],
                "limited": [spec_of(count, frames, **limited)],
                "LUFS, two passes, limited": [
                    spec_of(count, frames, **lufs, measure_only=True),
                    spec_of(count, frames, **lufs),
                ],
                "PEAK, two passes": [spec_of(count, frames, **peak, measure_only=True), spec_of(count, frames, **peak)],
                "sum, from 48 kHz": [spec_of(count, frames, rate=48_000)],
            }
            speeds = {kind: await timed(server, client, specs, music) for kind, specs in kinds.items()}
            result[f"{count} inputs"] = {**speeds, "whole arrays in memory, no server": plain(count, music)}
    return result


async def memory(music: Samples) -> dict[str, Any]:
    """Peak memory of a fresh server after a short and a long limited mix of 4 inputs, two of them resampled."""
    result: dict[str, Any] = {}
    for minutes in MINUTES:
        frames = minutes * 60 * RATE
        spec = spec_of(4, frames, true_peak_ceiling_db=CEILING_DB)
        for asked in spec.inputs[:2]:
            asked.sample_rate, asked.frames = 48_000, minutes * 60 * 48_000
        async with serving() as (server, client):
            await mixed(client, spec, music)
            result[f"{minutes} min"] = round(peak_mib(server.child.pid or 0), 1)
    short, long = result.values()
    return {"peak_mib": result, "growth_mib": round(long - short, 1)}


async def both() -> dict[str, Any]:
    music = song(SECONDS)
    return {"seconds_of_music": SECONDS, "rounds": ROUNDS, **await speeds(music), "memory": await memory(music)}


def measure() -> None:
    """Print and keep the speeds and the memory."""
    keep("mixer", asyncio.run(both()))
