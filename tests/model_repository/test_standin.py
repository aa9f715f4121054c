"""Stand-ins: real files of full size, the same everywhere, loud enough, and in tune."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch

from model_repository.rvc import checkpoint, standin
from model_repository.rvc.content import ContentEncoder
from model_repository.rvc.pitch import SwiftF0, tensors
from model_repository.rvc.voice import load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Both stand-ins, by the command."""
    made = tmp_path_factory.mktemp("standin")
    for what, name in (("content", standin.CONTENT_FILE), ("voice", "voice.pth")):
        command = [sys.executable, "-m", "model_repository.rvc.standin", what, str(made / name)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(made / name)
    assert {file.name for file in made.iterdir()} == {standin.CONTENT_FILE, "voice.pth"}
    yield made
    shutil.rmtree(made)


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, shapes and values, whatever the file around them."""
    whole = hashlib.sha256()
    for name in sorted(weights):
        assert weights[name].dtype == torch.float16
        whole.update(f"{name} {list(weights[name].shape)}\n".encode())
        whole.update(weights[name].numpy().astype("<f2").tobytes())
    return whole.hexdigest()


def test_the_numbers_are_the_same_on_every_machine(folder: Path) -> None:
    assert (
        digest(checkpoint.read(folder / standin.CONTENT_FILE))
        == "92dd045767d5d56c86055d98068a7ce1b8d550d977fb858180bf445ff629eb24"
    )
    assert (
        digest(checkpoint.read(folder / "voice.pth")["weight"])
        == "8a548918ec36380879cf749defdb6cfb53d129902329730ff73cd81427367418"
    )
    standin.voice(folder / "again.pth")
    assert (folder / "again.pth").read_bytes() == (folder / "voice.pth").read_bytes()
    standin.voice(folder / "again.pth", seed=1)
    other = checkpoint.read(folder / "again.pth")["weight"]
    first = checkpoint.read(folder / "voice.pth")["weight"]
    assert not any(torch.equal(other[name], first[name]) for name in first if name.endswith("_v"))


def test_features_depend_on_what_is_heard(folder: Path) -> None:
    encoder = ContentEncoder.load(folder / standin.CONTENT_FILE)
    time = torch.arange(16_000) / 16_000
    audio = torch.stack([torch.sin(6.28 * 300 * time * (1 + time)), torch.sin(6.28 * 200 * time)]) * 0.3
    for version, width in (("v1", 256), ("v2", 768)):
        features = encoder(audio, version)
        assert features.shape == (2, 49, width)
        assert 0.2 < float(features.std()) < 5
        assert float(features[0].std(0).mean()) > 0.02  # over time
        assert float((features[0] - features[1]).abs().mean()) > 0.1


@pytest.mark.parametrize("hertz", [150.0, 330.0])
def test_the_voice_is_loud_enough_and_in_tune(folder: Path, hertz: float) -> None:
    voice = load(folder / "voice.pth")
    assert voice.describe() | {"bytes": 0} == {
        "version": "v2", "rate": 40_000, "f0": True, "speakers": 4, "vectors": 0, "bytes": 0,
        "info": "a stand-in: sings noise",
    }  # fmt: skip
    frames = 80
    torch.manual_seed(0)
    pitch, f0 = tensors(np.full((1, frames), hertz), voice.device)
    features = torch.randn(1, frames // 4, 768).repeat_interleave(4, 1)
    with torch.inference_mode():
        audio = voice.synthesizer.infer(features, torch.tensor([frames]), pitch, f0, torch.tensor([3])).audio[0, 0]
    assert 0.05 < float(audio.std()) < 0.2
    assert float(audio.abs().max()) < 0.9
    heard = SwiftF0()(torch.from_numpy(soxr.resample(audio.numpy(), 40_000, 16_000))[None])[0]
    voiced = heard[heard > 0]
    assert len(voiced) > frames // 2
    assert abs(1200 * np.log2(np.median(voiced) / hertz)) < 50
