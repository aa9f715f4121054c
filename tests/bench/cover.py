"""Whole covers through the system, and through the command lines that people use instead, on generated voices.

    SECONDS=60,180 ROUNDS=1 python -m tests.bench cover

The other side is the sum of the ``demucs`` command line and RVC's classic offline pipeline (``rvc.parity``, our own
code for it, on the vocals that the system has separated, in this process), without the mix. What the contract's
measurements say that pipeline costs is computed beside it, not run.
"""

from __future__ import annotations

import asyncio
import math
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from contrafact import Client
from contrafact.v1 import job_pb2
from contrafact.v1.job_pb2 import Job
from contrafact.v1.track_pb2 import Track
from tritonclient.grpc.aio import InferenceServerClient

from model_repository.rvc import parity
from model_repository.rvc.audio import limit_peak
from model_repository.rvc.content import ContentEncoder
from model_repository.rvc.rmvpe import Rmvpe
from model_repository.rvc.voice import load
from servers.local import Stack
from tests.bench import standins
from tests.bench.common import RATE, keep, song
from tests.bench.processes import cpu_seconds, peak_mib, stubs
from tests.bench.rvc import CONTRACT
from tests.bench.speed import run_package, write_package_model, write_short

LENGTHS = [float(text) for text in os.environ.get("SECONDS", "60,180").split(",")]
ROUNDS = int(os.environ.get("ROUNDS", "1"))
MODELS = ("htdemucs", "rvc")
Figures = dict[str, Any]


async def computed(stack: Stack) -> dict[str, float]:
    """Seconds that each model has computed and inferences it has made, by Triton's own statistics."""
    async with InferenceServerClient(stack.environment["CONTRAFACT_TRITON_URL"]) as triton:
        all_of = await triton.get_inference_statistics(client_timeout=10)
    found = {}
    for each in all_of.model_stats:
        found[f"{each.name}_seconds"] = each.inference_stats.compute_infer.ns / 1e9
        found[f"{each.name}_inferences"] = float(each.inference_count)
    return found


def grown(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """By how much each figure has grown."""
    return {name: round(value - before.get(name, 0.0), 3) for name, value in after.items()}


def stages(job: Job) -> dict[str, float]:
    """Wall seconds of each stage of a job."""
    return {
        job_pb2.Stage.Name(timing.stage).removeprefix("STAGE_"): round(timing.wall.ToNanoseconds() / 1e9, 3)
        for timing in job.timings
    }


async def run_system(stack: Stack, client: Client, track: Track, voice: str, path: Path) -> tuple[Figures, Job]:
    """One cover, listened to while it is made: seconds from the request on, and what it cost whom."""
    cpu, compute, began = cpu_seconds(stack), await computed(stack), time.perf_counter()
    job = await client.cover(track, voice)
    first: list[float] = []
    await job.save_cover(path, lambda progress: first.append(time.perf_counter()))
    end = time.perf_counter()
    done = await job.wait()
    spent = {name: seconds for name, seconds in grown(cpu, cpu_seconds(stack)).items() if seconds >= 0.05}
    total = sum(spent.values())
    figures = {
        "first_audio": first[0] - began,
        "total": end - began,
        "cpu": total,
        "models_cpu_share": sum(spent.get(name, 0.0) for name in MODELS) / total,
        "cpu_by_process": spent,
        "stages": stages(done),
        "triton": grown(compute, await computed(stack)),
    }
    return figures, done


async def system_round(stack: Stack, client: Client, track_file: Path, voices: list[str], folder: Path) -> Figures:
    """The first cover of a track and one with another voice; the vocals are left in ``vocals.flac``."""
    track = await client.upload(track_file)
    figures = {}
    for which, voice in zip(("first", "second_voice"), voices, strict=True):
        figures[which], done = await run_system(stack, client, track, voice, folder / "cover.flac")
        if which == "first":
            await client.download(done.artifacts[0], folder / "vocals.flac")
        await client.delete_cover(done.artifacts[-1].name)  # or the next round would find it
    await client.delete_track(track.name)
    return figures


class Reference:
    """RVC's classic offline pipeline, its models loaded."""

    def __init__(self, environment: Mapping[str, str], voice: Path) -> None:
        self._content = ContentEncoder.load(Path(environment["CONTRAFACT_RVC_CONTENT"]))
        self._rmvpe = Rmvpe.load(Path(environment["CONTRAFACT_RVC_RMVPE"]))
        self._voice = load(voice)

    def run(self, vocals: Path) -> dict[str, float]:
        """Convert a file of vocals."""
        began, cpu = time.perf_counter(), time.process_time()
        samples, rate = soundfile.read(vocals, dtype="float32", always_2d=True)
        mono = limit_peak(soxr.resample(samples.mean(axis=1), rate, 16_000))
        parity.convert(mono, self._voice, self._content, self._rmvpe)
        return {"total": time.perf_counter() - began, "cpu": time.process_time() - cpu}


def run_demucs(models: Path, track: Path, folder: Path) -> dict[str, float]:
    """The ``demucs`` command line."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = run_package(models, track, folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"total": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def contract_cpu(seconds: float) -> float:
    """CPU seconds of RVC's pipeline on one thread, computed from the contract: 2 s of padding for each segment of
    about 38 s, for RMVPE once."""
    segments = 1 if seconds <= 41 else math.ceil(seconds / 38)
    padded = seconds + 2 * segments
    return (CONTRACT["content"] + CONTRACT["synthesizer"]) * padded + CONTRACT["pitch"] * (seconds + 2)


def medians(rounds: list[Figures]) -> Figures:
    """The median of each figure, whatever the depth."""
    return {
        key: medians([each.get(key, {}) for each in rounds])
        if isinstance(value, dict)
        else round(statistics.median(each.get(key, 0.0) for each in rounds), 3)
        for key, value in rounds[0].items()
    }


def ratios(seconds: float, ours: Figures, demucs: Figures, reference: Figures) -> Figures:
    """How much less the system takes: above 1 it is the better one."""
    first, second = ours["first"], ours["second_voice"]
    theirs = demucs["total"] + reference["total"]
    return {
        "times_faster": theirs / first["total"],
        "times_less_cpu": (demucs["cpu"] + reference["cpu"]) / first["cpu"],
        "first_audio_times_earlier": theirs / first["first_audio"],
        "second_voice_times_faster_than_reference": reference["total"] / second["total"],
        "second_voice_times_faster_than_both": theirs / second["total"],
        "times_less_cpu_than_contract_computed": (demucs["cpu"] + contract_cpu(seconds)) / first["cpu"],
        "times_real_time": seconds / first["total"],
        "second_voice_times_real_time": seconds / second["total"],
    }


async def measure_length(
    seconds: float, stack: Stack, client: Client, voices: list[str], reference: Reference, folder: Path
) -> Figures:
    """Both sides in turn on so much of the song."""
    track, ours, demucs, classic = folder / "song.flac", [], [], []
    soundfile.write(track, song(seconds).T, RATE, subtype="PCM_16")
    for _ in range(ROUNDS):
        ours.append(await system_round(stack, client, track, voices, folder))
        print(f"  {seconds:g} s, system {ours[-1]}", flush=True)
        demucs.append(await asyncio.to_thread(run_demucs, folder / "models", track, folder / "theirs"))
        classic.append(await asyncio.to_thread(reference.run, folder / "vocals.flac"))
        print(f"  {seconds:g} s, demucs {demucs[-1]}, reference pipeline {classic[-1]}", flush=True)
    system, package, pipeline = medians(ours), medians(demucs), medians(classic)
    vocals = soundfile.read(folder / "vocals.flac", always_2d=True)[0]
    return {
        "system": system,
        "demucs_command_line": package,
        "reference_pipeline_run": pipeline,
        "reference_pipeline_cpu_by_contract_computed_not_run": round(contract_cpu(seconds), 1),
        "ratios": {key: round(each, 3) for key, each in ratios(seconds, system, package, pipeline).items()},
        "vocals_peak_dbfs": round(float(20 * np.log10(np.abs(vocals).max() + 1e-9)), 1),
    }


async def both(folder: Path) -> Figures:
    """All lengths, on one stack whose models are loaded."""
    environment, paths = standins.environment(folder), [standins.voice(folder, seed) for seed in range(2)]
    reference = Reference(environment, paths[0])
    (folder / "models").mkdir()
    write_package_model(folder / "models")
    stack = Stack(folder / "stack", weights=False, environment=environment)
    async with stack, Client(stack.api_address) as client:
        voices = [(await client.import_voice(path, display_name=path.stem)).name for path in paths]
        job = await client.cover(await client.upload(write_short(folder)), voices[0])
        await job.wait()  # loads the models and the first voice; the second is loaded for its cover
        found = {
            f"{seconds:g} s": await measure_length(seconds, stack, client, voices, reference, folder)
            for seconds in LENGTHS
        }
        peaks = {name: round(peak_mib(pid)) for name, pid in stubs(stack).items()}
    return {"rounds": ROUNDS, "voices": "stand-ins", "model_peak_mib": peaks, "lengths": found}


def measure() -> None:
    """Print and keep the comparison."""
    with tempfile.TemporaryDirectory(prefix="contrafact-cover-") as folder:
        keep("cover", asyncio.run(both(Path(folder))))
