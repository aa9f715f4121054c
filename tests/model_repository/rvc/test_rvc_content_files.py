"""Content encoders as they are published: fairseq's pickle, old and new, and transformers' file or folder."""

from __future__ import annotations

import shutil
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model_repository.rvc.checkpoint import CheckpointError
from model_repository.rvc.content import ContentEncoder, translate


@pytest.fixture(scope="module")
def fairseq_state(checkpoint_file: Callable[[str], Path]) -> dict[str, torch.Tensor]:
    """fairseq's tensors, half precision."""
    state: dict[str, torch.Tensor] = torch.load(checkpoint_file("hubert"), weights_only=True)["model"]
    return state


@pytest.fixture(scope="module")
def expected(checkpoint_file: Callable[[str], Path]) -> dict[str, torch.Tensor]:
    """The network's own tensors."""
    return ContentEncoder.load(checkpoint_file("hubert")).state_dict()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """For one large file; pytest keeps its folders for a while."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture
def dictionary(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An object of a class of fairseq's, which is gone when the file is read."""
    module = ModuleType("fairseq.data.dictionary")

    class Dictionary:
        def __init__(self) -> None:
            self.symbols, self.indices = ["<s>", "<pad>"], {"<s>": 0, "<pad>": 1}

    Dictionary.__module__, Dictionary.__qualname__ = module.__name__, "Dictionary"
    module.Dictionary = Dictionary  # type: ignore[attr-defined]
    for name in ("fairseq", "fairseq.data", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    return Dictionary()


def same(encoder: ContentEncoder, expected: dict[str, torch.Tensor]) -> bool:
    found = encoder.state_dict()
    return found.keys() == expected.keys() and all(
        torch.equal(tensor, expected[name]) for name, tensor in found.items()
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_fairseqs_file(
    folder: Path,
    fairseq_state: dict[str, Any],
    expected: dict[str, Any],
    dictionary: Any,
    monkeypatch: pytest.MonkeyPatch,
    zipped: bool,
) -> None:
    file = {
        "args": None,
        "cfg": {"_name": None, "task": OrderedDict(labels=["km"], normalize=False)},
        "model": OrderedDict(fairseq_state),
        "task_state": {"dictionaries": [dictionary]},
        "optimizer_history": [{"criterion_name": "HubertCriterion", "num_updates": 400000}],
    }
    path = folder / "hubert_base.pt"
    torch.save(file, path, _use_new_zipfile_serialization=zipped)
    for name in ("fairseq", "fairseq.data", "fairseq.data.dictionary"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it would fail
    assert same(ContentEncoder.load(path), expected)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_transformers_folder_and_file(
    folder: Path, fairseq_state: dict[str, Any], expected: dict[str, Any], name: str
) -> None:
    unused = ("mask_emb", "label_embs_concat")
    state = {translate(key): tensor.clone() for key, tensor in fairseq_state.items() if key not in unused}
    state["masked_spec_embed"] = torch.ones(768)
    (folder / "config.json").write_text("{}")
    if name.endswith(".bin"):
        torch.save(state, folder / name)
    else:
        save_file({f"hubert.{key}": tensor for key, tensor in state.items()}, folder / name)
    for path in (folder, folder / name):
        assert same(ContentEncoder.load(path), expected)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.safetensors").write_bytes(b"\x40" + bytes(7) + b"{")
    torch.save([1], tmp_path / "list.pt")
    torch.save({1: 2}, tmp_path / "numbers.pt")
    torch.save({"enc_p.x": torch.ones(1)}, tmp_path / "voice.pt")
    for name, reason in (
        ("empty", "NOT_A_CHECKPOINT"),
        ("absent.pt", "NOT_A_CHECKPOINT"),
        ("cut.safetensors", "NOT_A_CHECKPOINT"),
        ("list.pt", "WRONG_FORMAT"),
        ("numbers.pt", "WRONG_FORMAT"),
        ("voice.pt", "WRONG_KEYS"),
    ):
        with pytest.raises(CheckpointError) as caught:
            ContentEncoder.load(tmp_path / name)
        assert caught.value.reason == reason, name
