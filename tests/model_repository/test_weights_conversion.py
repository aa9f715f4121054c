"""From an ONNX export back to the state_dict it was made of, and to the canonical file."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_repository import weights
from model_repository.weights import _onnx, _tensors, htdemucs

pytest.importorskip("onnx")
HTDemucs = pytest.importorskip("demucs.htdemucs").HTDemucs

LOCAL = Path(os.environ.get("CONTRAFACT_WEIGHTS_LOCAL", "absent")) / "htdemucs.onnx"


class Layers(HTDemucs):  # type: ignore[misc, valid-type]
    """HTDemucs without its transforms, as the mirror's export was made: at the root, so that names have no prefix."""

    def forward(self, mix: torch.Tensor, magnitude: torch.Tensor) -> tuple[Any, Any]:
        self.given = magnitude
        waveform = super().forward(mix)
        return self.kept, waveform

    def _spec(self, x: Any) -> Any:
        return self.given

    def _magnitude(self, z: Any) -> Any:
        return z

    def _mask(self, z: Any, m: Any) -> Any:
        self.kept = m
        return m

    def _ispec(self, z: Any, length: Any = None, scale: int = 0) -> Any:
        return 0.0


@pytest.fixture(scope="module")
def network() -> Layers:
    """The full architecture with random half-precision values, all different from what initialisation gives."""
    torch.manual_seed(5)
    network = Layers(**htdemucs.ARCHITECTURE)
    network.eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.copy_((parameter + 0.01 * torch.randn_like(parameter)).half().float())
    return network


@pytest.fixture(scope="module")
def exported(network: Layers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("export") / "layers.onnx"
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    example = (torch.zeros(1, 2, htdemucs.SEGMENT), torch.zeros(1, 4, 2048, 336))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(network, example, str(file), dynamo=False, opset_version=17)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return file


@pytest.mark.slow
def test_an_export_gives_back_every_tensor(network: Layers, exported: Path) -> None:
    expected = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    state = _tensors.halve(exported, _onnx.state_dict(exported))
    assert state.keys() == expected.keys()
    assert len(state) == 533
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name].astype(np.float32), array, err_msg=name)


@pytest.mark.slow
def test_an_export_and_a_float32_copy_become_the_same_file(network: Layers, exported: Path, tmp_path: Path) -> None:
    single = tmp_path / "hub.safetensors"
    tensors: dict[str, NDArray[Any]] = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    _tensors.write(single, dict(reversed(tensors.items())))
    htdemucs.canonicalise(single, tmp_path / "a.safetensors")
    htdemucs.canonicalise(exported, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded = htdemucs.load(tmp_path / "a.safetensors")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in network.state_dict().items())


def test_values_that_are_not_half_precision_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    _tensors.write(file, {"a": np.array([1.0], np.float32), "b": np.array([0.1], np.float32)})
    with pytest.raises(weights.WeightsCorrupt, match=r"other\.safetensors: wrong tensor 'b'"):
        htdemucs.canonicalise(file, tmp_path / "out.safetensors")


def test_other_tensors_do_not_load(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    _tensors.write(file, {"encoder.0.conv.weight": np.zeros((1, 2), np.float16)})
    with pytest.raises(weights.WeightsCorrupt, match=r"other\.safetensors: wrong tensors: expected those of HTDemucs"):
        htdemucs.load(file)


def test_what_is_not_onnx_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cut.onnx"
    file.write_bytes(b"\x08\x08garbage" * 9)
    with pytest.raises(weights.WeightsCorrupt, match=r"cut\.onnx: wrong content: expected an ONNX model"):
        htdemucs.canonicalise(file, tmp_path / "out.safetensors")


@pytest.mark.weights
@pytest.mark.slow
def test_the_real_export_becomes_the_pinned_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not LOCAL.is_file():
        pytest.skip("CONTRAFACT_WEIGHTS_LOCAL has no htdemucs.onnx")
    monkeypatch.setenv("CONTRAFACT_WEIGHTS_LOCAL", str(LOCAL))
    weights.fetch("htdemucs", cache=tmp_path / "cache")  # verifies its checksum, then its numbers


@pytest.mark.weights
@pytest.mark.slow
def test_a_file_changed_by_one_bit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        right = weights.path("htdemucs")
    except weights.WeightsMissing as error:
        pytest.skip(str(error))
    wrong = tmp_path / "htdemucs.safetensors"
    shutil.copy(right, wrong)
    with wrong.open("r+b") as stream:
        stream.seek(-2, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-2, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    registry = tmp_path / "registry.toml"
    text = weights._registry.REGISTRY.read_text().split("[[htdemucs.source]]")[0]
    registry.write_text(f'{text}[[htdemucs.source]]\nkind = "local"\npath = "{wrong}"\nnames = []\n')
    monkeypatch.setenv("CONTRAFACT_WEIGHTS_REGISTRY", str(registry))
    with pytest.raises(weights.WeightsError, match=r"made from htdemucs\.safetensors \(local\): wrong sha256"):
        weights.fetch("htdemucs", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.safetensors"))
