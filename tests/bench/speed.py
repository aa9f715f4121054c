"""A three-minute song through the whole system and through the ``demucs`` command line, in turn."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import soundfile
import torch
from contrafact import Client
from demucs.htdemucs import HTDemucs
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from model_repository.weights import fetch, htdemucs
from servers.local import Stack
from tests.bench.common import RATE, keep, song

SECONDS = 180.0
ROUNDS = int(os.environ.get("ROUNDS", "3"))


def write_package_model(folder: Path) -> None:
    """The same weights as a local model repository of the ``demucs`` package, in float32 as it publishes them."""
    state = htdemucs.load(fetch("htdemucs")).state_dict()
    package = {"klass": HTDemucs, "args": (), "kwargs": htdemucs.ARCHITECTURE, "state": state}
    torch.save(package, folder / "htdemucs.th")


def run_package(models: Path, track: Path, folder: Path) -> float:
    """Seconds that the ``demucs`` command line takes, from start to end."""
    options = ["--repo", str(models), "-n", "htdemucs", "-d", "cpu", "-o", str(folder)]
    command = [sys.executable, "-m", "demucs", *options, str(track)]
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


async def compute_seconds(stack: Stack) -> float:
    """Seconds that htdemucs has computed since it was loaded, by Triton's own statistics; 0 before."""
    async with InferenceServerClient(stack.environment["CONTRAFACT_TRITON_URL"]) as triton:
        try:
            statistics = await triton.get_inference_statistics("htdemucs", client_timeout=10)
        except InferenceServerException:
            return 0.0
    return sum(int(each.inference_stats.compute_infer.ns) for each in statistics.model_stats) / 1e9


async def run_system(stack: Stack, client: Client, track: Path, folder: Path) -> dict[str, float]:
    """Seconds from the end of the upload: to the first stem audio at the client, and to the last byte of all four."""
    began = time.perf_counter()
    uploaded = await client.upload(track)
    sent = time.perf_counter()
    computed = await compute_seconds(stack)
    job = await client.separate(uploaded)
    first: list[float] = []
    await job.save_live(folder, lambda progress: first.append(time.perf_counter()))
    end = time.perf_counter()
    done = await job.wait()
    computed = await compute_seconds(stack) - computed
    await client.delete_track(uploaded.name)  # or the next round would find its stems
    wall = (done.end_time.ToNanoseconds() - done.start_time.ToNanoseconds()) / 1e9
    return {
        "upload": sent - began,
        "first_audio": first[0] - sent,
        "total": end - sent,
        "job": wall,
        "compute_share": computed / wall,
    }


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {key: round(statistics.median(each[key] for each in rounds), 3) for key in rounds[0]}


async def both(folder: Path) -> dict[str, Any]:
    """Both sides in turn, ``ROUNDS`` times."""
    track = folder / "song.flac"
    soundfile.write(track, song(SECONDS).T, RATE, subtype="PCM_16")
    models = folder / "models"
    models.mkdir()
    write_package_model(models)
    ours, theirs = [], []
    async with Stack(folder / "stack") as stack, Client(stack.api_address) as client:
        await run_system(stack, client, write_short(folder), folder / "warm")  # loads the model
        for _ in range(ROUNDS):
            ours.append(await run_system(stack, client, track, folder / "ours"))
            print(f"  system {ours[-1]}", flush=True)
            theirs.append({"total": await asyncio.to_thread(run_package, models, track, folder / "theirs")})
            print(f"  package {theirs[-1]}", flush=True)
    system, package = medians(ours), medians(theirs)
    return {
        "seconds_of_music": SECONDS,
        "rounds": ROUNDS,
        "system": system,
        "demucs_command_line": package,
        "times_faster": round(package["total"] / system["total"], 3),
        "times_real_time": round(SECONDS / system["total"], 3),
        "all": {"system": ours, "demucs_command_line": theirs},
    }


def write_short(folder: Path) -> Path:
    """A second of music."""
    path = folder / "short.flac"
    soundfile.write(path, song(1.0).T, RATE, subtype="PCM_16")
    return path


def measure() -> None:
    """Print and keep the comparison."""
    with tempfile.TemporaryDirectory(prefix="contrafact-speed-") as folder:
        keep("speed", asyncio.run(both(Path(folder))))
