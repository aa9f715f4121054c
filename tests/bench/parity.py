"""Stems of the whole system against those of the ``demucs`` package, on the same weights and decoded input."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from contrafact import Client
from demucs.apply import apply_model

from model_repository.weights import fetch, htdemucs
from servers.local import Stack
from tests.bench.common import RATE, Samples, keep, song

SECONDS = 30.0


def si_sdr(reference: Samples, estimate: Samples) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., ICASSP 2019), all channels as one signal."""
    x, y = reference.astype(np.float64).ravel(), estimate.astype(np.float64).ravel()
    target = x * (np.vdot(x, y) / np.vdot(x, x))
    return float(10 * np.log10(np.vdot(target, target) / np.vdot(y - target, y - target)))


def of_package(mix: Samples) -> dict[str, Samples]:
    """What ``demucs`` itself makes of ``mix`` [2, frames], normalised as by its command line."""
    network = htdemucs.load(fetch("htdemucs"))
    wav = torch.from_numpy(mix)
    reference = wav.mean(0)
    mean, std = reference.mean(), reference.std() + 1e-8  # as demucs.api.Separator.separate_tensor
    with torch.no_grad():
        stems = apply_model(network, ((wav - mean) / std)[None], shifts=0, overlap=0.25)[0]
    return {name: (stem * std + mean).numpy() for name, stem in zip(htdemucs.STEMS, stems, strict=True)}


async def of_system(mix: Samples, folder: Path) -> dict[str, Samples]:
    """What comes back over gRPC, as float WAV."""
    soundfile.write(folder / "mix.wav", mix.T, RATE, subtype="FLOAT")
    async with Stack(folder / "stack") as stack, Client(stack.api_address) as client:
        job = await client.separate(await client.upload(folder / "mix.wav"), format="wav")
        files = await job.save_live(folder / "stems")
        return {name: soundfile.read(path, dtype="float32")[0].T for name, path in files.items()}


def compare(mix: Samples) -> dict[str, Any]:
    """Both, compared: dB per stem, and how well each side's stems add up to the mix."""
    theirs = of_package(mix)
    with tempfile.TemporaryDirectory(prefix="contrafact-parity-") as folder:
        ours = asyncio.run(of_system(mix, Path(folder)))
    return {
        "si_sdr_db": {name: round(si_sdr(theirs[name], ours[name]), 1) for name in theirs},
        "sum_against_mix_db": {
            "package": round(si_sdr(mix, np.sum(list(theirs.values()), axis=0)), 2),
            "system": round(si_sdr(mix, np.sum(list(ours.values()), axis=0)), 2),
        },
    }


def measure() -> None:
    """Print and keep the comparison."""
    keep("parity", {"seconds": SECONDS, **compare(song(SECONDS, start=60.0))})
