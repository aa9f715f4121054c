"""Verification in a process of its own: sound voices are described, hostile files refused with a stable reason."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_repository.rvc.register import octaves, pitch_range
from tests.model_repository.rvc.conftest import FIXTURES, tiny_file

ROOT = Path(__file__).resolve().parents[3]
INDEX = FIXTURES / "index_v1_256.index"


def verify(weights: Path, index: Path | None = None) -> dict[str, Any]:
    """What the module prints, as a process that has a minute."""
    command = [sys.executable, "-m", "model_repository.rvc.verify", str(weights)]
    if index is not None:
        command += ["--index", str(index)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{after.ru_utime - before.ru_utime:.1f} s of CPU", done.stdout[:200])
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert after.ru_utime - before.ru_utime < 20
    (line,) = done.stdout.splitlines()
    verdict: dict[str, Any] = json.loads(line)
    assert str(weights.parent) not in line.decode()
    return verdict


@pytest.fixture(scope="module")
def sound() -> dict[str, Any]:
    """The contents of a sound voice file."""
    return tiny_file()


def saved(file: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(file, buffer)
    return buffer.getvalue()


def test_a_sound_voice_is_described(sound: dict[str, Any], tmp_path: Path) -> None:
    weights = tmp_path / "voice.pth"
    weights.write_bytes(saved(sound))
    verdict = verify(weights, INDEX)
    assert verdict.pop("bytes") > 2_000_000
    assert verdict == {
        "ok": True, "version": "v1", "rate": 32_000, "f0": True, "speakers": 4, "vectors": 1000, "info": "tiny",
    }  # fmt: skip
    assert verify(weights)["vectors"] == 0


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def archive(pickled: bytes, tensors: int = 0, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive as of torch.save, of these contents."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as out:
        out.writestr("archive/data.pkl", pickled)
        out.writestr("archive/version", b"3\n")
        if tensors:
            out.writestr("archive/data/0", bytes(tensors))
    return packed.getvalue()


def claiming(data: bytes, size: int) -> bytes:
    """``data``, a zip archive, whose central directory claims ``size`` bytes for its first member."""
    at = data.index(b"PK\x01\x02")
    return data[: at + 24] + struct.pack("<I", size) + data[at + 28 :]


def hostile(kind: str, sound: dict[str, Any], mark: Path) -> bytes:
    weights = sound["weight"]
    nan = {**weights, "dec.conv_pre.bias": torch.full_like(weights["dec.conv_pre.bias"], float("nan"))}
    good = saved(sound)

    def sized(**changes: Any) -> bytes:
        """With other entries of its config, by their places."""
        config = {**dict(enumerate(sound["config"])), **{int(at[1:]): value for at, value in changes.items()}}
        return saved({**sound, "config": list(config.values())})

    files: dict[str, Any] = {
        "fast": lambda: sized(_12=[64, 64, 16], _14=[128, 128, 32], _17=6_553_600),
        "endless": lambda: sized(_17=float("inf")),
        "wide": lambda: sized(_13=2048),
        "many blocks": lambda: sized(_10=[1] * 8, _11=[[1] * 8] * 8, _13=512),
        "far": lambda: sized(_10=[31], _11=[[32] * 8]),
        "bomb": lambda: saved({**sound, "info": Bomb(f"touch {mark}")}),
        "raw bomb": lambda: pickle.dumps(Bomb(f"touch {mark}")),
        "bomb in an archive": lambda: archive(pickle.dumps(Bomb(f"touch {mark}"), protocol=2)),
        "zip bomb": lambda: archive(bytes(200_000_000), method=zipfile.ZIP_DEFLATED),
        "claims 2 GB": lambda: claiming(good, 0x7FFFFFFF),
        "claims 1 GB": lambda: claiming(good, 0x3F000000),
        "truncated": lambda: good[: len(good) * 2 // 3],
        "text": lambda: b"dear sir or madam\n" * 100,
        "empty": lambda: b"",
        "nan": lambda: saved({**sound, "weight": nan}),
        "infinite": lambda: saved({**sound, "weight": {n: t / 0 for n, t in weights.items()}}),
        "shape": lambda: saved({**sound, "weight": {**weights, "dec.conv_pre.bias": torch.zeros(7).half()}}),
        "huge tensor": lambda: saved(
            {**sound, "weight": {**weights, "emb_g.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}}
        ),
        "not a voice": lambda: saved({"model": {}}),
        "deep": lambda: archive(b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."),
    }
    made: bytes = files[kind]()
    return made


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bomb", "UNSAFE"),
        ("raw bomb", "NOT_A_CHECKPOINT"),
        ("bomb in an archive", "UNSAFE"),
        ("zip bomb", "UNSAFE"),
        ("claims 2 GB", "TOO_LARGE"),
        ("claims 1 GB", "NOT_A_CHECKPOINT"),
        ("truncated", "NOT_A_CHECKPOINT"),
        ("text", "NOT_A_CHECKPOINT"),
        ("empty", "NOT_A_CHECKPOINT"),
        ("nan", "WRONG_VALUES"),
        ("infinite", "WRONG_VALUES"),
        ("shape", "WRONG_SHAPES"),
        ("huge tensor", "WRONG_SHAPES"),
        ("not a voice", "WRONG_FORMAT"),
        ("deep", "WRONG_FORMAT"),
        ("fast", "WRONG_FORMAT"),
        ("endless", "WRONG_FORMAT"),
        ("wide", "TOO_LARGE"),
        ("many blocks", "TOO_LARGE"),
        ("far", "TOO_LARGE"),
    ],
)
def test_hostile_weights_are_refused(kind: str, reason: str, sound: dict[str, Any], tmp_path: Path) -> None:
    weights = tmp_path / "voice.pth"
    weights.write_bytes(hostile(kind, sound, tmp_path / "executed"))
    verdict = verify(weights)
    assert verdict["ok"] is False
    assert verdict["reason"] == reason
    assert set(verdict) == {"ok", "reason", "message"}
    assert os.listdir(tmp_path) == ["voice.pth"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("width", "WRONG_SHAPES"),
        ("count", "WRONG_FORMAT"),
        ("half", "WRONG_FORMAT"),
        ("text", "NOT_AN_INDEX"),
        ("nan", "WRONG_VALUES"),
        ("huge", "TOO_LARGE"),
        ("pipe", "NOT_A_FILE"),
        ("link", "NOT_A_FILE"),
        ("folder", "NOT_A_FILE"),
    ],
)
def test_hostile_indexes_are_refused(kind: str, reason: str, sound: dict[str, Any], tmp_path: Path) -> None:
    weights, index, good = tmp_path / "voice.pth", tmp_path / "voice.index", INDEX.read_bytes()
    weights.write_bytes(saved(sound))
    start = good.index(b"ilar") + 4 + 16 + 4 + 8 + 25 * 8
    contents = {
        "width": (FIXTURES / "index_v2_768.index").read_bytes(),
        "count": good[:8] + struct.pack("<q", 1 << 60) + good[16:],
        "half": good[: len(good) // 2],
        "text": b"hello world, I am an index",
        "nan": good[:start] + np.full(256, np.nan, np.float32).tobytes() + good[start + 1024 :],
    }
    if kind in contents:
        index.write_bytes(contents[kind])
    elif kind == "huge":
        with index.open("wb") as out:
            out.truncate(3 << 30)
    elif kind == "pipe":
        os.mkfifo(index)
    elif kind == "link":
        index.symlink_to(INDEX)
    else:
        index.mkdir()
    verdict = verify(weights, index)
    assert (verdict["ok"], verdict["reason"]) == (False, reason)


def test_a_link_in_place_of_weights_is_refused(sound: dict[str, Any], tmp_path: Path) -> None:
    target = tmp_path / "voice.pth"
    target.write_bytes(saved(sound))
    (tmp_path / "link.pth").symlink_to(target)
    for path in (tmp_path / "link.pth", tmp_path / "nothing.pth", tmp_path, Path("/dev/zero")):
        assert verify(path)["reason"] == "NOT_A_FILE"


def test_the_process_has_no_rights(tmp_path: Path) -> None:
    """What code in a file could do, if there were a way to run it."""
    program = f"""
import model_repository.rvc.verify as verify, resource
verify._limit()
for what, attempt in (
    ("write", lambda: open({str(tmp_path / "x")!r}, "wb").write(bytes(10000))),
    ("memory", lambda: bytearray(5 << 30)),
):
    try:
        attempt()
        print(what, "worked")
    except (OSError, MemoryError) as error:
        print(what, type(error).__name__)
print(resource.getrlimit(resource.RLIMIT_CPU)[1], resource.getrlimit(resource.RLIMIT_CORE)[1])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=100, check=True)
    assert done.stdout.decode().split("\n") == ["write OSError", "memory MemoryError", "60 0", ""]
    assert (tmp_path / "x").stat().st_size == 0


def test_pitch_range() -> None:
    f0 = np.concatenate([np.zeros(500), np.linspace(100, 300, 1001), [np.nan] * 3])
    assert pitch_range(f0) == pytest.approx((110, 200, 290))
    assert pitch_range(f0[:549]) is None
    assert pitch_range(f0[:550]) is not None
    assert pitch_range(np.zeros(0)) is None


def test_octaves_keep_the_key() -> None:
    assert octaves(110, 220) == 12
    assert octaves(220, 440 * 2 ** (5 / 12)) == 12
    assert octaves(220, 440 * 2 ** (7 / 12)) == 24
    assert octaves(400, 110) == -24
    assert octaves(220, 280) == 0
    assert octaves(0, 220) == octaves(220, 0) == 0
