"""Voice files: all real kinds load, hostile ones are refused with a reason and do nothing."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from model_repository.rvc import checkpoint
from model_repository.rvc.checkpoint import CheckpointError
from model_repository.rvc.retrieval import Index
from model_repository.rvc.voice import load, out_of_memory, try_out
from tests.model_repository.rvc.conftest import tiny_file, tiny_voice

File = dict[str, Any]


@pytest.fixture(scope="module")
def sound() -> File:
    """The contents of a sound voice file; copy before changing."""
    return tiny_file()


def saved(file: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(file, buffer, **options)
    return buffer.getvalue()


def changed(file: File, **weights: Any) -> File:
    """``file`` with other weights; None takes one away. Names have ``__`` for dots."""
    new = dict(file["weight"])
    for name, tensor in weights.items():
        name = name.replace("__", ".")
        if tensor is None:
            del new[name]
        else:
            new[name] = tensor
    return {**file, "weight": new}


def refusal(weights: bytes | Path, index: bytes | Path | None = None, **options: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load(weights, index, **options)
    print(caught.value.reason, caught.value)
    assert str(Path.cwd()) not in str(caught.value)
    return caught.value


def test_real_kinds_of_files_load(sound: File, fixtures: Path) -> None:
    one = load(saved(sound), (fixtures / "index_v1_256.index").read_bytes())
    assert one.describe() | {"bytes": 0} == {
        "version": "v1", "rate": 32_000, "f0": True, "speakers": 4, "vectors": 1000, "bytes": 0, "info": "tiny",
    }  # fmt: skip
    try_out(one)
    assert 2 <= (one.bytes - load(saved(sound)).bytes) / (1000 * 256 * 4) < 2.1  # faiss has a copy of the vectors
    bare = {key: value for key, value in sound.items() if key not in ("version", "f0", "info", "sr")}
    assert load(saved(bare)).describe() == load(saved(sound)).describe() | {"info": ""}
    singles = {name: tensor.float() for name, tensor in sound["weight"].items()}
    trained = {**singles, "enc_q.pre.weight": torch.zeros(3)}
    many = {**trained, "emb_g.weight": torch.zeros(109, 16)}
    assert load(saved({**sound, "weight": many})).speakers == 109
    half, full = load(saved(sound)), load(saved({**sound, "weight": trained}))
    for name, tensor in half.synthesizer.state_dict().items():
        assert torch.equal(tensor, full.synthesizer.state_dict()[name])
    config = [*sound["config"][:17], "32k"]
    assert load(saved({**sound, "config": config})).rate == 32_000


@pytest.mark.parametrize(
    "more",
    [
        {"sr": 32_000},
        {"f0": True, "version": None},
        {"author": "someone", "epoch": "200", "step": 9000, "model_name": "x", "dataset_length": "00:12:03"},
        {"embedder_model": "contentvec", "vocoder": "HiFi-GAN", "speakers_id": 1, "overtrain_info": {"a": [0.5]}},
        {"info": "200epoch", "creation_date": "2024-01-01", "model_hash": None, "text_enc_hidden_dim": 768},
        {"info": None},
    ],
    ids=lambda more: next(iter(more)),
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_real_files_say_besides(sound: File, more: File, zipped: bool) -> None:
    described = load(saved({**sound, **more}, _use_new_zipfile_serialization=zipped)).describe()
    assert described | {"info": ""} == load(saved(sound)).describe() | {"info": ""}


def test_files_from_before_pytorch_1_6(sound: File, tmp_path: Path) -> None:
    old = saved(sound, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(io.BytesIO(old))
    path = tmp_path / "old.pth"
    path.write_bytes(old)
    new = load(saved(sound)).synthesizer.state_dict()
    for source in (old, path):
        assert all(torch.equal(t, new[name]) for name, t in load(source).synthesizer.state_dict().items())
    assert refusal(old[:-100]).reason == "NOT_A_CHECKPOINT"
    assert refusal(old, limit=len(old) - 1).reason == "TOO_LARGE"
    mark = tmp_path / "executed"
    for thing in (Bomb(f"touch {mark}"), Copy(path, mark)):
        bad = saved({**sound, "extra": thing}, _use_new_zipfile_serialization=False)
        assert refusal(bad).reason == "UNSAFE"
    path.write_bytes(saved({"model": {}, "cfg": Copy(path, mark)}, _use_new_zipfile_serialization=False))
    assert checkpoint.read(path, foreign=True)["model"] == {}
    path.write_bytes(saved({"model": {}, "cfg": Bomb(f"touch {mark}")}, _use_new_zipfile_serialization=False))
    with pytest.raises(CheckpointError):
        checkpoint.read(path, foreign=True)
    assert not mark.exists()


def test_a_storage_that_is_not_in_the_file(sound: File) -> None:
    """An old file says how long a storage is before it comes: a million times longer is an error, not an allocation."""
    old = saved({"weight": torch.zeros(3)}, _use_new_zipfile_serialization=False)
    number = b"K\x03"  # three elements, in the storage's description and the tensor's
    assert old.count(number) >= 2
    assert refusal(old.replace(number, b"\x8a\x06" + (1 << 44).to_bytes(6, "little"))).reason == "NOT_A_CHECKPOINT"


def test_files_of_training_are_called_by_their_names() -> None:
    generator = {"model": {"enc_p.emb_phone.weight": torch.zeros(1), "enc_q.pre.bias": torch.zeros(1)}}
    discriminator = {"model": {"discriminators.0.convs.0.bias": torch.zeros(1)}, "iteration": 1, "optimizer": {}}
    for file, reason in (
        (generator, "TRAINING_CHECKPOINT"),
        ({**generator, "iteration": 3, "learning_rate": 1e-4, "optimizer": {"state": {}}}, "TRAINING_CHECKPOINT"),
        (generator["model"], "TRAINING_CHECKPOINT"),
        (discriminator, "DISCRIMINATOR"),
        ({"model": {"encoder.layers.0.fc1.bias": torch.zeros(1)}}, "WRONG_FORMAT"),
    ):
        assert refusal(saved(file)).reason == reason


def test_weight_norm_is_folded_as_pytorch_does_it() -> None:
    torch.manual_seed(0)
    for layer in (torch.nn.Conv1d(4, 6, 3), torch.nn.ConvTranspose1d(4, 6, 3)):
        normed = torch.nn.utils.parametrizations.weight_norm(layer)
        with torch.no_grad():
            normed.parametrizations.weight.original0.mul_(1.7)
        weights = normed.state_dict()
        g, v = weights["parametrizations.weight.original0"], weights["parametrizations.weight.original1"]
        for names in (("x.weight_g", "x.weight_v"), tuple(f"x.parametrizations.weight.original{i}" for i in (0, 1))):
            folded = checkpoint.fold_weight_norm({names[1]: v, names[0]: g})
            assert list(folded) == ["x.weight"]
            assert torch.allclose(folded["x.weight"], normed.weight, atol=1e-6)


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Copy:
    """Copies a file when it is unpickled."""

    def __init__(self, source: Path, target: Path) -> None:
        self.source, self.target = str(source), str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return shutil.copyfile, (self.source, self.target)


def test_a_malicious_pickle_does_nothing(sound: File, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    for at in ("info", "weight", "extra"):
        assert refusal(saved({**sound, at: Bomb(f"touch {mark}")})).reason == "UNSAFE"
    foreign = tmp_path / "hubert_base.pt"
    foreign.write_bytes(saved({"model": {}, "cfg": Bomb(f"touch {mark}")}))
    with pytest.raises(CheckpointError):
        checkpoint.read(foreign, foreign=True)
    foreign.write_bytes(saved({"model": {}, "cfg": Copy(foreign, mark)}))
    checkpoint.read(foreign, foreign=True)  # a content encoder's file may name other things, and gets empty shells
    assert refusal(foreign).reason == "UNSAFE"
    assert refusal(pickle.dumps(Bomb(f"touch {mark}"))).reason == "NOT_A_CHECKPOINT"
    assert not mark.exists()


def test_archives_that_lie_are_refused(sound: File, tmp_path: Path) -> None:
    good = saved(sound)
    assert refusal(b"").reason == "NOT_A_CHECKPOINT"
    assert refusal(b"RIFF" + bytes(1000)).reason == "NOT_A_CHECKPOINT"
    assert refusal(good[: len(good) // 2]).reason == "NOT_A_CHECKPOINT"
    assert refusal(good, limit=100_000).reason == "TOO_LARGE"
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    assert len(bomb.getvalue()) < 100_000
    assert refusal(bomb.getvalue()).reason == "UNSAFE"
    path = tmp_path / "huge.pth"
    with path.open("wb") as out:
        out.truncate(3 << 30)  # a sparse file: claims 3 GB, holds nothing
    assert refusal(path).reason == "TOO_LARGE"


def test_wrong_weights_are_refused(sound: File) -> None:
    nan = sound["weight"]["dec.conv_pre.weight"].clone()
    nan[0, 0, 0] = float("nan")
    huge = torch.zeros(1, dtype=torch.float16).expand(40_000, 16)
    cases: list[tuple[Any, str]] = [
        ([1, 2], "WRONG_FORMAT"),
        ({"model": {}, "iteration": 3}, "TRAINING_CHECKPOINT"),
        (changed(sound, dec__conv_pre__bias=None), "WRONG_KEYS"),
        (changed(sound, emb_g__weight=None), "WRONG_KEYS"),
        (changed(sound, dec__surprise=torch.zeros(1)), "WRONG_KEYS"),
        (changed(sound, dec__conv_pre__bias=torch.zeros(7)), "WRONG_SHAPES"),
        (changed(sound, dec__ups__0__weight_g=torch.zeros(3)), "WRONG_SHAPES"),
        (changed(sound, emb_g__weight=huge), "WRONG_SHAPES"),
        (changed(sound, dec__conv_pre__weight=nan), "WRONG_VALUES"),
        (changed(sound, dec__conv_pre__bias="text"), "WRONG_FORMAT"),
        (changed(sound, dec__conv_pre__bias=torch.zeros(64, dtype=torch.int32)), "WRONG_FORMAT"),
        ({**sound, "version": "v2"}, "WRONG_FORMAT"),
        ({**sound, "version": "v9"}, "WRONG_FORMAT"),
        ({**sound, "f0": 0}, "WRONG_KEYS"),
        ({**sound, "f0": "yes"}, "WRONG_FORMAT"),
        ({**sound, "config": None}, "WRONG_FORMAT"),
        ({**sound, "config": sound["config"][:9]}, "WRONG_FORMAT"),
    ]
    for place, value in ((6, 10**9), (17, 44_100), (9, "2"), (12, [10] * 9), (13, 65), (12, 5), (3, -1), (7, 4)):
        config = list(sound["config"])
        config[place] = value
        cases.append(({**sound, "config": config}, "WRONG_FORMAT"))
    for file, reason in cases:
        assert refusal(saved(file)).reason == reason


def test_want_of_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 50)
    assert out_of_memory(error.value)
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("sizes differ"))


def test_indexes_that_lie_are_refused(fixtures: Path, sound: File) -> None:
    good = (fixtures / "index_v1_256.index").read_bytes()
    weights = saved(sound)
    assert refusal(weights, fixtures / "index_v2_768.index").reason == "WRONG_SHAPES"

    def patched(at: int, form: str, value: Any) -> bytes:
        return good[:at] + struct.pack(form, value) + good[at + struct.calcsize(form) :]

    lists = good.index(b"ilar")
    ids_end = len(good) - 8
    cases = {
        "empty": b"",
        "text": b"hello world",
        "half": good[: len(good) // 2],
        "more": good + b"x",
        "channels": patched(4, "<i", 1 << 30),
        "vectors": patched(8, "<q", 1 << 60),
        "negative": patched(8, "<q", -1),
        "metric": patched(33, "<i", 0),
        "lists": patched(37, "<Q", 1 << 50),
        "probes": patched(45, "<Q", 1 << 20),
        "list size": patched(lists + 4 + 16 + 4 + 8, "<Q", 1 << 61),
        "id": patched(ids_end, "<q", 1 << 40),
    }
    for name, data in cases.items():
        error = refusal(weights, data)
        assert error.reason in ("NOT_AN_INDEX", "WRONG_FORMAT", "WRONG_SHAPES"), name
    nan = np.full(256, np.nan, np.float32).tobytes()
    start = lists + 4 + 16 + 4 + 8 + 25 * 8
    assert refusal(weights, good[:start] + nan + good[start + len(nan) :]).reason == "WRONG_VALUES"
    assert refusal(weights, good, limit=len(good) - 1).reason == "TOO_LARGE"
    hnsw = faiss.IndexHNSWFlat(256, 8)
    hnsw.add(np.zeros((10, 256), np.float32))
    assert refusal(weights, faiss.serialize_index(hnsw).tobytes()).reason == "NOT_AN_INDEX"


def test_random_damage_never_gets_through_the_walk(fixtures: Path) -> None:
    """Damage in the structure is noticed before faiss sees the file (which could crash); in vectors it is just data."""
    small = faiss.index_factory(8, "IVF4,Flat")
    data = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    small.train(data)
    small.add(data)
    good = bytearray(faiss.serialize_index(small).tobytes())
    assert len(Index.load(bytes(good), 8)) == 200
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(500):
        bad = bytearray(good)
        for _ in range(3):
            bad[random.integers(len(bad))] = random.integers(256)
        try:
            Index.load(bytes(bad), 8)
        except CheckpointError:
            refused += 1
    assert refused > 50


def test_flat_indexes_load(fixtures: Path) -> None:
    flat = faiss.IndexFlatL2(4)
    flat.add(np.eye(4, dtype=np.float32))
    index = Index.load(faiss.serialize_index(flat).tobytes(), 4)
    assert torch.isfinite(index.blend(torch.ones(1, 3, 4), 1.0)).all()  # four vectors, fewer than eight neighbours


@pytest.mark.parametrize("exact", [False, True])
def test_a_feature_that_equals_a_stored_vector(fixtures: Path, exact: bool) -> None:
    """The reference gives NaN; the vector itself is right."""
    index = Index.load(fixtures / "index_v1_256.index", 256)
    stored = torch.from_numpy(index._vectors[[3, 700]])
    blended = index.blend(stored, 1.0, exact)
    assert torch.allclose(blended, stored, atol=1e-5)
    assert torch.allclose(index.blend(stored, 0.25, exact), stored, atol=1e-5)


def test_exact_search_finds_what_faiss_finds_exhaustively(fixtures: Path) -> None:
    index = Index.load(fixtures / "index_v1_256.index", 256)
    queries = torch.from_numpy(index._vectors[:50] + np.float32(0.1))
    probes, index._index.nprobe = index._index.nprobe, index._index.nlist
    exhaustive = index.blend(queries, 0.75)
    assert torch.allclose(index.blend(queries, 0.75, exact=True), exhaustive, atol=1e-4)
    index._index.nprobe = probes
    assert probes == 1
    assert not torch.allclose(index.blend(queries, 0.75), exhaustive, atol=1e-4)


def test_a_list_without_enough_neighbours_leaves_what_it_finds(fixtures: Path) -> None:
    index = faiss.index_factory(4, "IVF2,Flat")
    near, far = np.random.default_rng(0).normal(0, 0.1, (2, 100, 4)).astype(np.float32)
    index.train(np.concatenate([near, far + 10]))
    index.add(np.concatenate([near, far[:1] + 10]))  # the far list has a single vector: ids -1 for seven neighbours
    loaded = Index.load(faiss.serialize_index(index).tobytes(), 4)
    query = torch.full((1, 4), 11.0)
    assert torch.allclose(loaded.blend(query, 1.0), torch.from_numpy(far[:1] + 10), atol=1e-5)


def test_unknown_speakers_are_refused() -> None:
    pitch = torch.full((1, 10), 100)
    with pytest.raises(ValueError, match="does not exist"):
        tiny_voice().synthesizer.infer(
            torch.zeros(1, 10, 256), torch.tensor([10]), pitch, pitch * 2.0, torch.tensor([4])
        )
