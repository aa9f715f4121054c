"""Training checkpoints: as voices they are refused with the reason, and made into voices when their kind is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model_repository.rvc.checkpoint import CheckpointError
from model_repository.rvc.synthesizer import Config, Synthesizer
from model_repository.rvc.training import KINDS, configuration, inference_checkpoint, main
from model_repository.rvc.voice import load
from tests.fixtures.rvc import make_checkpoint

VARIANT = "v2_40k_f0"


@pytest.fixture(scope="module")
def voice_file(checkpoint_file: Callable[[str], Path]) -> dict[str, Any]:
    """A voice as RVC writes it."""
    file: dict[str, Any] = torch.load(checkpoint_file(VARIANT), weights_only=True)
    return file


@pytest.fixture(scope="module")
def model(voice_file: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The same voice in training: single precision, with a posterior encoder."""
    single = {name: tensor.float() for name, tensor in voice_file["weight"].items()}
    return {**single, "enc_q.pre.weight": torch.ones(192, 1025, 1), "enc_q.pre.bias": torch.ones(192)}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """For large files; pytest keeps its own folders for a while."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def write(path: Path, file: Any, **options: Any) -> Path:
    torch.save(file, path, **options)
    return path


def refusal(work: Callable[[], Any]) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        work()
    return caught.value


@pytest.mark.parametrize(
    "more", [{}, {"iteration": 7, "learning_rate": 1e-4, "optimizer": {"state": {}, "param_groups": []}}]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_generator_becomes_the_voice_it_was(
    folder: Path, voice_file: dict[str, Any], model: dict[str, Any], more: dict[str, Any], zipped: bool
) -> None:
    raw = write(folder / "G.pth", {"model": model, **more}, _use_new_zipfile_serialization=zipped)
    assert refusal(lambda: load(raw)).reason == "TRAINING_CHECKPOINT"
    out = folder / "voice.pth"
    inference_checkpoint(raw, "v2-40k-f0", out)
    made = torch.load(out, weights_only=True)
    assert made["weight"].keys() == voice_file["weight"].keys()
    assert all(torch.equal(tensor, voice_file["weight"][name]) for name, tensor in made["weight"].items())
    assert {name: made[name] for name in ("config", "sr", "f0", "version")} == {
        name: voice_file[name] for name in ("config", "sr", "f0", "version")
    }
    assert load(out).describe() | {"info": "", "bytes": 0} == {
        "version": "v2", "rate": 40_000, "f0": True, "speakers": 4, "vectors": 0, "bytes": 0, "info": "",
    }  # fmt: skip
    assert {file.name for file in folder.iterdir()} == {"G.pth", "voice.pth"}


def test_weight_norm_may_have_its_new_names(folder: Path, voice_file: dict[str, Any], model: dict[str, Any]) -> None:
    new = {
        name.replace(".weight_g", ".parametrizations.weight.original0").replace(
            ".weight_v", ".parametrizations.weight.original1"
        ): tensor
        for name, tensor in model.items()
    }
    assert new.keys() != model.keys()
    inference_checkpoint(write(folder / "G.pth", {"model": new}), "v2-40k-f0", folder / "voice.pth")
    assert torch.load(folder / "voice.pth", weights_only=True)["weight"].keys() == voice_file["weight"].keys()


def test_what_is_no_generator_of_this_kind_is_refused_and_leaves_nothing(folder: Path, model: dict[str, Any]) -> None:
    discriminator = {"model": {"discriminators.0.convs.0.weight_g": torch.ones(3)}, "iteration": 1}
    infinite = {**model, "emb_g.weight": torch.full((4, 256), 1e6)}
    missing = {name: tensor for name, tensor in model.items() if name != "dec.conv_pre.bias"}
    cases = [
        ({"model": model}, "v2-48k-f0", "WRONG_SHAPES"),
        ({"model": model}, "v1-40k-f0", "WRONG_FORMAT"),
        ({"model": model}, "v2-40k-nof0", "WRONG_KEYS"),
        ({"model": missing}, "v2-40k-f0", "WRONG_KEYS"),
        ({"model": {**model, "dec.surprise": torch.ones(1)}}, "v2-40k-f0", "WRONG_KEYS"),
        ({"model": infinite}, "v2-40k-f0", "WRONG_VALUES"),
        (discriminator, "v2-40k-f0", "DISCRIMINATOR"),
        ({"weight": model}, "v2-40k-f0", "WRONG_FORMAT"),
        ({"model": [1]}, "v2-40k-f0", "WRONG_FORMAT"),
        ([1], "v2-40k-f0", "WRONG_FORMAT"),
    ]
    out = folder / "voice.pth"
    for file, kind, reason in cases:
        raw = write(folder / "raw.pth", file)
        assert refusal(lambda raw=raw, kind=kind: inference_checkpoint(raw, kind, out)).reason == reason  # type: ignore[misc]
    with pytest.raises(ValueError, match="v2-40k-f0"):
        inference_checkpoint(raw, "v2-44k-f0", out)
    assert [file.name for file in folder.iterdir()] == ["raw.pth"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_what_the_contract_says(kind: str) -> None:
    version, rate, pitch = kind.split("-")
    about = configuration(kind)
    assert about["config"] == make_checkpoint.config(version, rate)
    manifest = make_checkpoint.json.loads((make_checkpoint.HERE / "manifests.json").read_text())[kind.replace("-", "_")]
    with torch.device("meta"):
        network = Synthesizer(Config.read(about, 768 if version == "v2" else 256), 4)
    norms = {name.removesuffix("_g") for name in manifest if name.endswith("weight_g")}
    plain = {name for name in manifest if not name.endswith(("weight_g", "weight_v"))}
    assert network.state_dict().keys() == norms | plain
    assert about["f0"] == (pitch == "f0")


def test_the_command(folder: Path, model: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    raw, out = write(folder / "G.pth", {"model": model}), folder / "voice.pth"
    assert main([str(raw), "v2-32k-f0", str(out)]) == 1
    assert capsys.readouterr().err.startswith("training: error: ")
    assert not out.exists()
    assert main([str(raw), "v2-40k-f0", str(out)]) == 0
    assert load(out).rate == 40_000
