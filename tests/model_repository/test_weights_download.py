"""Downloads from servers that behave like the model hub and like an object store, well and badly; all on loopback."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from minio import Minio

from model_repository import weights
from model_repository.weights import _http, _sources
from servers.local import running_stack
from tests.model_repository.test_weights import INSTALLED, ROOT, Place, command, place, wait_for  # noqa: F401

DATA = bytes(range(256)) * 1200  # about 300 kB of no format in particular
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Remote:
    """A model hub with its CDN, and an object store, that have the one file.

    Attributes:
        script: what the next downloads of content do: ``ok``, ``500``, ``cut`` (half of it), ``wrong``, ``more``
            (twice as much), ``hang`` (half, then nothing), ``hold`` (half, the rest when ``go`` is set), ``mute`` (not
            even a status), ``part`` (another than was asked for). Then ``ok``.
        heads: status codes of the next questions for metadata; then 302.
        asked: every request: method, path, range.
    """

    def __init__(self) -> None:
        self.data = DATA
        self.script: list[str] = []
        self.heads: list[int] = []
        self.asked: list[tuple[str, str, str | None]] = []
        self.go = threading.Event()
        remote = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                self.answer()

            def answer(self) -> None:
                remote.asked.append((self.command, self.path, self.headers.get("Range")))
                remote.answer(self)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn = self.url.replace("127.0.0.1", "localhost")  # another host, at which the hub's client stops to read

    def close(self) -> None:
        self.go.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        if to.path == "/":
            self.send(to, 200)
        elif re.fullmatch(r"/someone/voices/resolve/(main|v1)/folder/tiny\.pth", to.path):
            self.resolve(to)
        elif to.path in ("/cdn/tiny.pth", "/store/tiny.pth"):
            self.content(to)
        elif to.path.startswith("/someone/voices/"):
            code = "EntryNotFound" if "/main/" in to.path else "RevisionNotFound"
            self.send(to, 404, {"X-Error-Code": code, "X-Error-Message": "absent"})
        elif to.path.startswith("/cdn") or to.path.startswith("/store"):
            self.send(to, 404)
        else:
            self.send(to, 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "absent"})

    def resolve(self, to: BaseHTTPRequestHandler) -> None:
        """Metadata, and the way to the content."""
        if self.heads and (status := self.heads.pop(0)) != 302:
            return self.send(to, status)
        digest = hashlib.sha256(self.data).hexdigest()
        self.send(
            to,
            302,
            {
                "Location": f"{self.cdn}/cdn/tiny.pth",
                "X-Repo-Commit": COMMIT,
                "X-Linked-Size": str(len(self.data)),
                "X-Linked-ETag": f'"{digest}"',
                "ETag": f'"{digest}"',
            },
        )

    def content(self, to: BaseHTTPRequestHandler) -> None:
        act = self.script.pop(0) if self.script and to.command == "GET" else "ok"
        if act == "500":
            return self.send(to, 500)
        if act == "mute":
            self.go.wait(60)
            to.close_connection = True
            return None
        data = {"wrong": self.data[::-1], "more": self.data * 2}.get(act, self.data)
        start = int(re.fullmatch(r"bytes=(\d+)-.*", to.headers.get("Range", "bytes=0-"))[1])  # type: ignore[index]
        headers = {"Accept-Ranges": "bytes", "ETag": '"content"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if act == "part":
            headers["Content-Range"] = f"bytes 0-{len(data) - 1}/{len(data)}"
        body = data[start:]
        self.send(to, 206 if start else 200, headers, len(body))
        if to.command == "HEAD":
            return
        half = body[: len(body) // 2] if act in ("cut", "hang", "hold") else body
        to.wfile.write(half)
        to.wfile.flush()
        if act in ("hang", "hold"):
            self.go.wait(60)
        if act == "hold":
            to.wfile.write(body[len(half) :])
        elif act != "ok":
            to.close_connection = True

    @staticmethod
    def send(to: BaseHTTPRequestHandler, status: int, headers: dict[str, str] | None = None, length: int = 0) -> None:
        to.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(length)}.items():
            to.send_header(name, value)
        to.end_headers()

    @property
    def downloads(self) -> list[str | None]:
        """The ranges in which content was asked for."""
        return [part for method, path, part in self.asked if method == "GET" and path.startswith(("/cdn", "/store"))]


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Remote]:
    running = Remote()
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    monkeypatch.setattr(_http, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(_http, "PAUSE_SECONDS", 0.05)
    yield running
    running.close()


def hub(file: str = "folder/tiny.pth", repo: str = "someone/voices", **more: str) -> dict[str, Any]:
    return {"kind": "hub", "repo": repo, "file": file, **more}


def register(place: Place, *sources: dict[str, Any]) -> None:  # noqa: F811
    """The registry: the one set ``tiny``, published as it is."""
    lines = ["[tiny]", 'file = "tiny.pth"', f"size = {len(DATA)}"]
    lines += [f'sha256 = "{hashlib.sha256(DATA).hexdigest()}"', 'licence = "none"']
    for source in sources:
        lines += ["[[tiny.source]]", *(f"{key} = {json.dumps(value)}" for key, value in source.items())]
    place.registry.write_text("\n".join(lines))


@pytest.fixture(params=["hub", "object_store"])
def use(request: pytest.FixtureRequest, place: Place, remote: Remote) -> Remote:  # noqa: F811
    """A registry whose only source is one of the two."""
    if request.param == "hub":
        pytest.importorskip("huggingface_hub")
        register(place, hub())
    else:
        register(place, {"kind": "object_store", "url": f"{remote.url}/store", "key": "tiny.pth"})
    return remote


def assert_installed(place: Place) -> None:  # noqa: F811
    assert weights.path("tiny").read_bytes() == DATA
    place.assert_clean("tiny.pth", "tiny.pth.checked")


def assert_refused(place: Place, message: str) -> None:  # noqa: F811
    with pytest.raises(weights.WeightsError, match=message):
        weights.fetch("tiny")
    place.assert_clean()


def test_a_file_is_fetched_once_and_again_when_forced(use: Remote, place: Place) -> None:  # noqa: F811
    for _ in range(2):
        weights.fetch("tiny")
    assert use.downloads == [None]
    assert_installed(place)
    weights.fetch("tiny", force=True)
    assert use.downloads == [None, None]
    assert_installed(place)


def test_a_failing_server_is_asked_again(use: Remote, place: Place) -> None:  # noqa: F811
    use.script = ["500"]
    weights.fetch("tiny")
    assert len(use.downloads) == 2
    assert_installed(place)


@pytest.mark.parametrize("act", ["cut", "hang"])
def test_a_broken_download_is_resumed_where_it_broke(use: Remote, place: Place, act: str) -> None:  # noqa: F811
    use.data = DATA * 80  # the hub's client keeps whole chunks of 10 MiB
    text = place.registry.read_text().replace(f"size = {len(DATA)}", f"size = {len(use.data)}")
    place.registry.write_text(text.replace(hashlib.sha256(DATA).hexdigest(), hashlib.sha256(use.data).hexdigest()))
    use.script = [act]
    assert weights.fetch("tiny").read_bytes() == use.data
    first, second = use.downloads
    assert first is None
    kept = len(use.data) // 2 if "object_store" in place.registry.read_text() else 10 << 20
    assert second is not None
    assert second.startswith(f"bytes={kept}-")


def test_a_server_that_falls_silent_before_it_answers_is_asked_again(place: Place, remote: Remote) -> None:  # noqa: F811
    register(place, {"kind": "object_store", "url": f"{remote.url}/store", "key": "tiny.pth"})
    remote.script = ["cut", "mute"]
    weights.fetch("tiny")
    half = f"bytes={len(DATA) // 2}-"
    assert remote.downloads == [None, half, half]
    assert_installed(place)


def test_another_part_than_was_asked_for_is_refused(place: Place, remote: Remote) -> None:  # noqa: F811
    register(place, {"kind": "object_store", "url": f"{remote.url}/store", "key": "tiny.pth"})
    remote.script = ["cut", "part"]
    assert_refused(place, "another part")


def test_a_server_that_always_fails_is_given_up(use: Remote, place: Place) -> None:  # noqa: F811
    use.script = ["500"] * 100
    assert_refused(place, "500")
    assert len(use.downloads) < 10


def test_other_content_is_refused(use: Remote, place: Place) -> None:  # noqa: F811
    use.script = ["wrong"] * 100
    assert_refused(place, rf"wrong sha256: expected {hashlib.sha256(DATA).hexdigest()}, found")
    use.script = ["ok"]
    weights.fetch("tiny")
    use.script = ["wrong"] * 100
    with pytest.raises(weights.WeightsError, match="wrong sha256"):
        weights.fetch("tiny", force=True)
    assert_installed(place)  # the old file, which was right


def test_no_server_can_fill_the_disk(place: Place, remote: Remote) -> None:  # noqa: F811
    register(place, {"kind": "object_store", "url": f"{remote.url}/store", "key": "tiny.pth"})
    remote.script = ["more"]
    assert_refused(place, f"wrong size: expected at most {len(DATA)} bytes, found more")


def test_the_hubs_process_cannot_write_more_than_allowed(place: Place, remote: Remote) -> None:  # noqa: F811
    pytest.importorskip("huggingface_hub")
    register(place, hub())
    place.registry.write_text(place.registry.read_text().replace(f"size = {len(DATA)}", "size = 50000"))
    assert_refused(place, "File too large")
    assert len(remote.downloads) == 1


def test_a_server_that_never_ends_is_left_in_time(
    use: Remote,
    place: Place,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use.script = ["hang"] * 100
    monkeypatch.setattr(_sources, "DOWNLOAD_SECONDS", 3.0)
    started = time.monotonic()
    assert_refused(place, "tiny")
    assert time.monotonic() - started < 60.0  # the hub's client alone would take minutes


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (hub("absent.pth"), "Entry Not Found"),
        (hub(revision="v9"), "Revision Not Found"),
        (hub(repo="nobody/nothing"), "Repository Not Found"),
    ],
)
def test_what_the_hub_does_not_have(
    place: Place,  # noqa: F811
    remote: Remote,
    source: dict[str, Any],
    message: str,
) -> None:
    pytest.importorskip("huggingface_hub")
    register(place, source, hub(revision="v1"))
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("model_repository.weights._cache.say", said.append)
        weights.fetch("tiny")  # from the second source
    assert any(message in line for line in said)
    assert (
        len([path for _, path, _ in remote.asked if path.startswith(f"/{source['repo']}") and "/v1/" not in path]) < 3
    )
    assert_installed(place)


def test_an_object_store_without_the_file_is_asked_once(place: Place, remote: Remote) -> None:  # noqa: F811
    register(place, {"kind": "object_store", "url": f"{remote.url}/store", "key": "absent.pth"})
    assert_refused(place, "HTTP Error 404")
    assert len(remote.asked) == 1


def test_a_hub_that_recovers(place: Place, remote: Remote) -> None:  # noqa: F811
    pytest.importorskip("huggingface_hub")
    register(place, hub())
    remote.heads = [500, 500]
    weights.fetch("tiny")
    assert_installed(place)


def test_two_processes_download_once(use: Remote, place: Place) -> None:  # noqa: F811
    use.script = ["hold"]
    first = command("fetch", "tiny", env={**os.environ, "HF_HUB_DOWNLOAD_TIMEOUT": "30"})
    wait_for(lambda: use.downloads)
    second = command("fetch", "tiny")
    assert second.stderr
    assert "waiting for another process" in second.stderr.readline()
    use.go.set()
    assert first.communicate(timeout=100)[0].strip() == second.communicate(timeout=100)[0].strip()
    assert first.returncode == second.returncode == 0
    assert use.downloads == [None]
    assert_installed(place)


def test_a_terminated_fetch_ends_the_hubs_process(place: Place, remote: Remote) -> None:  # noqa: F811
    pytest.importorskip("huggingface_hub")
    register(place, hub())
    remote.script = ["hold"]
    process = command("fetch", "tiny", env={**os.environ, "HF_HUB_DOWNLOAD_TIMEOUT": "30"})
    wait_for(lambda: remote.downloads)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    process.terminate()
    assert process.wait(100) == 130
    wait_for(lambda: not Path(f"/proc/{children[0]}").exists())  # its new parent must reap it first
    place.assert_clean()


def test_several_sets_at_once_and_without_torch(place: Place, remote: Remote) -> None:  # noqa: F811
    register(place, {"kind": "object_store", "url": f"{remote.url}/store", "key": "tiny.pth"})
    text = place.registry.read_text()
    second = text.replace("[tiny", "[second").replace('file = "tiny', 'file = "second')
    place.registry.write_text(f"{text}\n{second}")
    process = command("fetch", "tiny", "absent", "second")
    printed, said = process.communicate(timeout=100)
    assert printed.splitlines() == [str(place.cache / "tiny.pth"), str(place.cache / "second.pth")]
    assert process.returncode == 1
    assert "no weight set is called 'absent'" in said
    listed, _ = command("list").communicate(timeout=100)
    assert {line.split("\t")[0] for line in listed.splitlines()} == {"tiny", "second"}
    program = (
        "import sys; from model_repository.weights.__main__ import main; status = main(['fetch', '--force', 'tiny']);"
        "sys.exit(status or bool({'torch', 'onnx', 'safetensors', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_the_sets_that_are_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTRAFACT_WEIGHTS_REGISTRY", raising=False)
    sets = weights.load_registry()
    assert {"htdemucs", "contentvec", "rmvpe", "rvc-base"} <= sets.keys()
    for name in ("contentvec", "rmvpe", "rvc-base"):
        one = sets[name]
        assert one.layout == "plain"
        assert one.limit == one.size
        assert {source.kind for source in one.sources} == {"local", "object_store", "hub"}
        for source in one.sources:
            options = source.options
            assert Path(options.get("file") or options.get("key") or options["names"][0]).name == one.file


def test_an_s3_bucket(
    place: Place,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running_stack(tmp_path / "stack", only={"s3"}) as stack:
        for name, value in stack.environment.items():
            if name.startswith("CONTRAFACT_S3_"):
                monkeypatch.setenv(name, value)
        client = Minio(
            stack.environment["CONTRAFACT_S3_ENDPOINT"].removeprefix("http://"),
            stack.environment["CONTRAFACT_S3_ACCESS_KEY"],
            stack.environment["CONTRAFACT_S3_SECRET_KEY"],
            secure=False,
            region="us-east-1",
        )
        client.put_object("contrafact", "v1/tiny.pth", io.BytesIO(DATA), len(DATA))
        register(place, {"kind": "object_store", "url": "s3://contrafact/v1", "key": "absent.pth"})
        assert_refused(place, "s3://contrafact/v1/absent.pth")
        register(place, {"kind": "object_store", "url": "s3://contrafact/v1", "key": "tiny.pth"})
        weights.fetch("tiny")
        assert_installed(place)
        client.put_object("contrafact", "v1/tiny.pth", io.BytesIO(DATA * 2), 2 * len(DATA))
        with pytest.raises(weights.WeightsError, match="at most"):
            weights.fetch("tiny", force=True)
        assert_installed(place)


def test_an_s3_bucket_with_the_usual_keys(place: Place, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    for name in ("ACCESS_KEY", "SECRET_KEY", "REGION"):
        monkeypatch.delenv(f"CONTRAFACT_S3_{name}", raising=False)
    monkeypatch.setenv("CONTRAFACT_S3_ENDPOINT", remote.url)
    register(place, {"kind": "object_store", "url": "s3://store", "key": "tiny.pth"})
    weights.fetch("tiny")
    assert [path for _, path, _ in remote.asked] == ["/store/tiny.pth"]  # nobody was asked for the region
    assert_installed(place)
