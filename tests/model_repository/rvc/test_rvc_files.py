"""Voice files on disk, against a real object store: verified, bounded, shared, and fetched anew when damaged."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from minio import Minio

from model_repository.rvc import files as files_module
from model_repository.rvc import store as store_module
from model_repository.rvc.checkpoint import CheckpointError
from model_repository.rvc.files import Files
from model_repository.rvc.loader import Key, VoiceNotFound, VoiceRefused, VoiceStoreError, loader
from model_repository.rvc.store import Store
from servers.local import running_stack
from servers.local.ports import free_port

pytestmark = pytest.mark.timeout(240)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """How a running object store is reached."""
    with running_stack(tmp_path_factory.mktemp("s3"), only={"s3"}) as stack:
        yield stack.environment


@pytest.fixture(scope="module")
def upload(s3: Mapping[str, str]) -> Callable[..., Key]:
    """Call it with the bytes of a voice and perhaps of its index: they are stored, and this is the voice's key."""
    client = Minio(
        s3["CONTRAFACT_S3_ENDPOINT"].removeprefix("http://"),
        s3["CONTRAFACT_S3_ACCESS_KEY"],
        s3["CONTRAFACT_S3_SECRET_KEY"],
        secure=False,
        region="us-east-1",
    )

    def put(weights: bytes, index: bytes = b"", voice: str = "", stored: bytes | None = None) -> Key:
        voice = voice or str(uuid.uuid4())
        key = Key(voice, hashlib.sha256(weights).hexdigest(), hashlib.sha256(index).hexdigest() if index else "")
        for name, data in (
            (f"{key.weights}.pth", weights if stored is None else stored),
            (f"{key.index}.index", index),
        ):
            if data:
                client.put_object("contrafact", f"voices/{voice}/{name}", io.BytesIO(data), len(data))
        return key

    return put


@pytest.fixture
def cache(s3: Mapping[str, str], tmp_path: Path) -> Iterator[Callable[..., Files]]:
    """Call it, perhaps with the bytes that fit: a cache before the store. No half file is ever left."""

    def make(limit: int = 10_000_000, **environment: str) -> Files:
        stopping = threading.Event()
        return Files(tmp_path / "cache", limit, Store.configured(stopping, {**s3, **environment}), stopping)

    yield make
    assert not list(tmp_path.glob("cache/*/*.part"))


def read(files: Files, key: Key) -> tuple[bytes, bytes | None]:
    with files.held(key) as (weights, index):
        return weights.read_bytes(), index.read_bytes() if index else None


def buried(files: Files) -> None:
    """Wait until what was removed is gone."""
    deadline = time.monotonic() + 100
    while files._doomed:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def away() -> dict[str, str]:
    return {"CONTRAFACT_S3_ENDPOINT": f"http://127.0.0.1:{free_port()}"}


def test_files_are_fetched_once(cache: Callable[..., Files], upload: Callable[..., Key], tmp_path: Path) -> None:
    key = upload(big := os.urandom(3_000_000), b"index")
    files = cache()
    assert read(files, key) == (big, b"index")
    assert files.report() == {"bytes": 3_000_005, "limit": 10_000_000, "voices": [key.voice]}
    assert read(cache(**away()), key) == (big, b"index")  # another process, and the store is away
    files.remove(key.voice)
    assert files.report()["voices"] == []
    buried(files)
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*")) == [".locks", ".room"]


@pytest.mark.parametrize("damage", [b"", b"x", b"x" * 1000], ids=["empty", "short", "same size"])
def test_damaged_files_are_fetched_anew(cache: Callable[..., Files], upload: Callable[..., Key], damage: bytes) -> None:
    key, files = upload(data := os.urandom(1000)), cache()
    with files.held(key) as (weights, _):
        pass
    weights.write_bytes(damage)
    assert read(files, key) == (data, None)
    weights.write_bytes(damage)
    with pytest.raises(VoiceStoreError, match="does not answer"):
        read(cache(**away()), key)


def test_the_disk_is_bounded(cache: Callable[..., Files], upload: Callable[..., Key], tmp_path: Path) -> None:
    files = cache(3500)
    a, b, c, d = (upload(os.urandom(1000)) for _ in range(4))
    for number, key in enumerate((a, b, c, a)):
        read(files, key)
        if number < 3:  # file times are coarser than this test is fast
            path = tmp_path / "cache" / key.voice / f"{key.weights}.pth"
            os.utime(path, (number, number))
    read(files, d)  # b was not used for the longest time
    assert files.report() == {"bytes": 3000, "limit": 3500, "voices": sorted(k.voice for k in (a, c, d))}
    whole = upload(os.urandom(3500))
    with files.held(a), pytest.raises(VoiceStoreError, match="full of voices in use"):
        read(files, whole)
    assert files.report()["voices"] == [a.voice]
    assert len(read(files, whole)[0]) == 3500
    with pytest.raises(VoiceRefused, match=r"TOO_LARGE: the file has 3,501 bytes; at most 3,500"):
        read(files, upload(os.urandom(3501)))
    assert files.report()["voices"] == [whole.voice]


def test_a_voices_own_older_version_may_leave_for_the_new(
    cache: Callable[..., Files], upload: Callable[..., Key]
) -> None:
    files = cache(1500)
    old = upload(os.urandom(1000))
    new = upload(os.urandom(1000), voice=old.voice)
    read(files, old)
    read(files, new)
    assert files.report() == {"bytes": 1000, "limit": 1500, "voices": [new.voice]}


def test_what_is_not_what_it_should_be_is_refused(cache: Callable[..., Files], upload: Callable[..., Key]) -> None:
    files = cache()
    lie = upload(b"good", stored=b"evil")
    missing = Key(str(uuid.uuid4()), "0" * 64)
    good = upload(b"good")
    for _ in range(2):
        with pytest.raises(VoiceRefused, match="CHECKSUM") as refusal:
            read(files, lie)
        assert refusal.value.reason == "CHECKSUM"
        with pytest.raises(VoiceNotFound):
            read(files, missing)
        with pytest.raises(VoiceNotFound):
            read(files, Key(good.voice, good.weights, "0" * 64))
    assert files.report()["voices"] == [good.voice]


@pytest.mark.parametrize("how", ["away", "wrong secret", "no TLS", "hung"])
def test_a_store_that_does_not_answer(
    cache: Callable[..., Files],
    upload: Callable[..., Key],
    s3: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    monkeypatch.setattr(store_module, "READ_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        changes = {
            "away": away(),
            "wrong secret": {"CONTRAFACT_S3_SECRET_KEY": "wrong"},
            "no TLS": {"CONTRAFACT_S3_ENDPOINT": s3["CONTRAFACT_S3_ENDPOINT"].replace("http:", "https:")},
            "hung": {"CONTRAFACT_S3_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"},
        }
        with pytest.raises(VoiceStoreError, match="does not answer"):
            read(cache(**changes[how]), upload(b"voice"))


class Broken:
    """The real store, but the first so many connections break in the middle of an object."""

    def __init__(self, s3: Mapping[str, str], times: int) -> None:
        self._store: Any = Store.configured(threading.Event(), s3)
        self._left = times

    @contextmanager
    def reading(self, key: str) -> Iterator[Any]:
        with self._store.reading(key) as reader:
            if self._left > 0:
                self._left -= 1
                reader._response._fp.fp.raw._sock.shutdown(socket.SHUT_RDWR)
            yield reader


@pytest.mark.parametrize("times", [2, 3])
def test_broken_downloads_are_tried_again(
    s3: Mapping[str, str], upload: Callable[..., Key], tmp_path: Path, times: int
) -> None:
    key = upload(data := os.urandom(8_000_000))
    files = Files(tmp_path, store=Broken(s3, times))  # type: ignore[arg-type]
    if times < files_module.ATTEMPTS:
        assert read(files, key) == (data, None)
    else:
        with pytest.raises(VoiceStoreError, match="broke off"):
            read(files, key)
        assert files.report()["bytes"] == 0


class Paused:
    """The real store, but an object's bytes wait until somebody says ``go``."""

    def __init__(self, s3: Mapping[str, str]) -> None:
        self._store: Any = Store.configured(threading.Event(), s3)
        self.begun, self.go = threading.Event(), threading.Event()

    @contextmanager
    def reading(self, key: str) -> Iterator[Any]:
        with self._store.reading(key) as self._reader:
            self.size = self._reader.size
            yield self

    def __iter__(self) -> Iterator[bytes]:
        self.begun.set()
        assert self.go.wait(100)
        return iter(self._reader)


def test_what_is_being_fetched_counts(
    s3: Mapping[str, str], upload: Callable[..., Key], cache: Callable[..., Files], tmp_path: Path
) -> None:
    slow, other = upload(os.urandom(1000)), upload(os.urandom(1000))
    store = Paused(s3)
    first, second = Files(tmp_path / "cache", 1500, store), cache(1500)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as thread:
        fetching = thread.submit(read, first, slow)
        assert store.begun.wait(100)
        with pytest.raises(VoiceStoreError, match="full of voices in use"):
            read(second, other)
        assert cache(1500).report()["bytes"] == 1000  # a new process leaves it alone, too
        store.go.set()
        assert len(fetching.result()[0]) == 1000
    assert len(read(second, other)[0]) == 1000
    assert second.report()["voices"] == [other.voice]


def test_files_in_use_stay(cache: Callable[..., Files], upload: Callable[..., Key]) -> None:
    files, other = cache(), cache()
    key = upload(b"voice")
    with files.held(key) as (weights, _):
        files.remove(key.voice)
        other.remove(key.voice)
        time.sleep(0.1)  # there was time to do wrong
        assert weights.read_bytes() == b"voice"
    for one in (files, other):
        buried(one)
        one.close()
    assert not weights.exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "voice-files"]


def test_a_folder_that_vanishes_is_made_again(
    cache: Callable[..., Files], upload: Callable[..., Key], tmp_path: Path
) -> None:
    files, key = cache(), upload(b"voice")
    read(files, key)
    shutil.rmtree(tmp_path / "cache")
    assert files.report() == {"bytes": 0, "limit": 10_000_000, "voices": []}
    files.remove(key.voice)
    buried(files)
    assert read(files, key) == (b"voice", None)


def test_what_cannot_be_removed_is_left_alone(s3: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "voice" / "x.pth.part").mkdir(parents=True)
    Files(tmp_path, store=Store.configured(threading.Event(), s3))


@pytest.mark.parametrize("stops", [False, True], ids=["late", "stopping"])
def test_a_store_that_trickles_is_left(monkeypatch: pytest.MonkeyPatch, stops: bool) -> None:
    monkeypatch.setattr(store_module, "TOTAL_SECONDS", 600.0 if stops else 2.0)
    stopping, done = threading.Event(), threading.Event()

    def serve(listening: socket.socket) -> None:
        with listening.accept()[0] as to:
            to.recv(65_536)
            to.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
            while not done.wait(0.01):
                to.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as thread:
        serving = thread.submit(serve, listening)
        store = Store(f"http://127.0.0.1:{listening.getsockname()[1]}", stopping)
        with store.reading("voice") as reader:
            pieces = iter(reader)
            assert len(next(pieces)) < 1000
            if stops:
                stopping.set()
            with pytest.raises(VoiceStoreError, match="too slow"):
                list(pieces)
            done.set()
            serving.result(100)


def test_many_processes_share_the_folder(
    s3: Mapping[str, str], upload: Callable[..., Key], cache: Callable[..., Files], tmp_path: Path
) -> None:
    """Three processes and three threads use eight voices in room for four, each of which stays whole while used."""
    keys = [upload(os.urandom(100_000 + number), b"index" * number) for number in range(8)]
    script = tmp_path / "use.py"
    script.write_text(
        "import hashlib, random, sys, threading\n"
        "from pathlib import Path\n"
        "from model_repository.rvc.files import Files\n"
        "from model_repository.rvc.loader import Key, VoiceStoreError\n"
        "from model_repository.rvc.store import Store\n"
        "keys = [Key(*arg.split(',')) for arg in sys.argv[2:]]\n"
        "files = Files(Path(sys.argv[1]), 450_000, Store.configured(threading.Event()))\n"
        "for _ in range(20):\n"
        "    key = random.choice(keys)\n"
        "    try:\n"
        "        with files.held(key) as (weights, index):\n"
        "            assert hashlib.sha256(weights.read_bytes()).hexdigest() == key.weights\n"
        "            assert (index is not None) == bool(key.index)\n"
        "    except VoiceStoreError as error:\n"
        "        assert 'full of voices' in str(error), error\n"
        "    assert files.report()['bytes'] <= 450_000\n"
    )
    arguments = [f"{key.voice},{key.weights},{key.index}" for key in keys]
    command = [sys.executable, str(script), str(tmp_path / "cache"), *arguments]
    environment = {**os.environ, **s3, "PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    left = cache().report()
    assert 300_000 < left["bytes"] <= 450_000
    assert sorted(path.name for path in (tmp_path / "cache" / ".locks").iterdir()) == left["voices"]


def test_what_a_killed_process_left_is_removed(cache: Callable[..., Files], upload: Callable[..., Key]) -> None:
    files, key = cache(), upload(b"voice")
    part = files.folder / key.voice / f"{key.weights}.pth.part"
    part.parent.mkdir()
    part.write_bytes(bytes(5_000_000))
    assert cache().report()["bytes"] == 0
    assert read(files, key) == (b"voice", None)


def test_without_a_store_the_folder_is_a_library(tmp_path: Path) -> None:
    assert Store.configured(threading.Event(), {}) is None
    key = Key("alice", hashlib.sha256(b"voice").hexdigest(), hashlib.sha256(b"index").hexdigest())
    folder = tmp_path / "alice"
    folder.mkdir()
    (folder / f"{key.weights}.pth").write_bytes(b"voice")
    (folder / f"{key.index}.index").write_bytes(b"index")
    files = Files(tmp_path, limit=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert read(files, key) == (b"voice", b"index")
    files.remove("alice")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(VoiceNotFound, match="no object store"):
        read(files, Key("bob", key.weights))
    (folder / f"{key.weights}.pth").write_bytes(b"other")
    with pytest.raises(VoiceRefused, match="CHECKSUM"):
        read(files, key)
    assert (folder / f"{key.weights}.pth").read_bytes() == b"other"


@pytest.mark.parametrize(
    "wrong", [("../x", "0" * 64), ("", "0" * 64), ("a", ""), ("a", "0" * 63), ("a", "A" * 64), ("a", "0" * 64, "../x")]
)
def test_keys_are_checked(wrong: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"is no (id of a voice|SHA-256)"):
        Key(*wrong)


def test_a_refused_checkpoint_is_a_refused_voice(cache: Callable[..., Files], upload: Callable[..., Key]) -> None:
    def load(weights: Path, index: Path | None) -> Any:
        raise CheckpointError("UNSAFE", f"holds code, {index}")

    with pytest.raises(VoiceRefused, match="UNSAFE: holds code, None") as refusal:
        loader(cache(), load)(upload(b"voice"))
    assert refusal.value.reason == "UNSAFE"
