"""The embedded stack, for real: its servers start, serve, restart and leave nothing behind."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest
import tritonclient.grpc as triton_client
from minio import Minio
from redis import Redis

from servers.local import STORES, Stack, StackError, running_stack
from servers.local import triton as triton_module
from servers.local.contrafact import ROOT
from servers.local.process import Child, Command

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """After each test: no new child, shared-memory region or temporary socket folder."""
    before = _leftovers()
    yield
    deadline = time.monotonic() + 60
    while (extra := _leftovers() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not extra


def _leftovers() -> set[str]:
    # Not their children: those of a stack that other tests use come and go.
    found = {f"pid {p.pid}" for p in psutil.Process().children()}
    # By the start of their names: other stacks of this machine (other tests) are none of our business.
    found |= {str(path) for path in Path("/dev/shm").glob(f"contrafact-{os.getpid()}-*")}
    return found


def _alive(pid: int) -> bool:
    """Whether it runs; a zombie has ended, and some containers' init takes seconds to bury an orphan."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _empty(folder: Path, environment: dict[str, str], pids: list[int], prefix: str) -> None:
    """Assert that a stopped stack left nothing but data, logs and credentials."""
    assert not [pid for pid in pids if _alive(pid)]
    assert not (folder / "run").exists()
    assert not (folder / "state.json").exists()
    assert not list(folder.rglob(".s.PGSQL*"))
    assert not list(Path("/dev/shm").glob(f"{prefix}*"))
    for name in ("REDIS_URL", "S3_ENDPOINT", "TRITON_URL"):
        if value := environment.get(f"CONTRAFACT_{name}"):
            port = int(value.rpartition(":")[2].split("/")[0])
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 1)


def _minio(environment: dict[str, str]) -> Minio:
    return Minio(
        environment["CONTRAFACT_S3_ENDPOINT"].removeprefix("http://"),
        environment["CONTRAFACT_S3_ACCESS_KEY"],
        environment["CONTRAFACT_S3_SECRET_KEY"],
        secure=False,
        region="us-east-1",  # else the client asks for it first
    )


def _sql(environment: dict[str, str], *statements: str) -> Any:
    async def run() -> Any:
        connection = await asyncpg.connect(environment["CONTRAFACT_DATABASE_URL"])
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(run())


def _up(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "servers.local", "up", "--data", str(folder), *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _ready(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr.read() if process.stderr else ""
    answer: dict[str, Any] = json.loads(line)
    return answer


def test_starts_serves_survives_a_restart_and_leaves_nothing(tmp_path: Path) -> None:
    with running_stack(tmp_path / "data", servers=False) as stack:
        one = dict(stack.environment)
        assert 0 < stack.started_seconds < 200
        assert stat_mode(tmp_path / "data/credentials.json") == 0o600
        made = _sql(
            one,
            "CREATE EXTENSION vector",
            "CREATE TABLE t AS SELECT '[1,2]'::vector v",
            "SELECT v::text FROM t",
        )
        assert made == "[1,2]"
        Redis.from_url(one["CONTRAFACT_REDIS_URL"]).set("key", "value")
        _minio(one).put_object("contrafact", "a/b", io.BytesIO(b"bytes"), 5)
        assert triton_client.InferenceServerClient(one["CONTRAFACT_TRITON_URL"]).is_server_ready()
        pids = [child.pid for child in stack.processes.values()]
        prefix = stack._folder.shm_prefix
    _empty(tmp_path / "data", one, pids, prefix)

    with running_stack(tmp_path / "data", only=STORES) as stack:
        two = stack.environment
        assert "CONTRAFACT_TRITON_URL" not in two
        assert _sql(two, "SELECT v::text FROM t") == "[1,2]"
        assert Redis.from_url(two["CONTRAFACT_REDIS_URL"]).get("key") == b"value"
        assert _minio(two).get_object("contrafact", "a/b").read() == b"bytes"
        # A URL signed before the restart is still good after it.
        assert two["CONTRAFACT_S3_SECRET_KEY"] == one["CONTRAFACT_S3_SECRET_KEY"]


def stat_mode(path: Path) -> int:
    """Permission bits."""
    return path.stat().st_mode & 0o777


def test_two_stacks_side_by_side_and_a_folder_used_twice(tmp_path: Path) -> None:
    with (
        running_stack(tmp_path / "a", only=STORES) as a,
        running_stack(tmp_path / "b", only=STORES) as b,
    ):
        assert not set(a.environment.values()) & set(b.environment.values()) - {"contrafact"}
        _sql(a.environment, "CREATE TABLE only_a ()", "SELECT 1")
        assert _sql(b.environment, "SELECT to_regclass('only_a')") is None
        told = f"already runs in {tmp_path}/a .pid {os.getpid()}"
        with pytest.raises(StackError, match=told) as refused, running_stack(tmp_path / "a", only=STORES):
            pass
        assert "\n" not in str(refused.value)
        assert _sql(a.environment, "SELECT 1") == 1  # the refused one touched nothing


def test_credentials_are_needed(tmp_path: Path) -> None:
    with running_stack(tmp_path, only={"valkey", "s3"}) as stack:
        url = stack.environment["CONTRAFACT_REDIS_URL"]
        with pytest.raises(Exception, match=r"(?i)authenticat"):
            Redis.from_url(f"redis://{url.partition('@')[2]}").ping()
        wrong = stack.environment | {"CONTRAFACT_S3_SECRET_KEY": "wrong"}
        with pytest.raises(Exception, match="AccessDenied"):
            _minio(wrong).stat_object("contrafact", "x")
        arguments = [word for child in stack.processes.values() for word in psutil.Process(child.pid).cmdline()]
        secret = stack.environment["CONTRAFACT_S3_SECRET_KEY"]
        assert not [word for word in arguments if secret in word or "redis:" in word]


def test_deep_folder_gets_short_sockets(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 20) / ("deeper" * 10)
    with running_stack(folder, only={"postgres"}) as stack:
        assert _sql(stack.environment, "SELECT 1") == 1
        temporary = stack._folder._temporary
        assert temporary is not None
        assert temporary.exists()
    assert not temporary.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    process = _up(tmp_path, "--only", "stores", "--json")
    answer = _ready(process)
    process.send_signal(number)
    assert process.wait(100) == 0
    _empty(tmp_path, answer["environment"], list(answer["processes"].values()), "contrafact_none")


def test_a_signal_during_the_start_stops_it(tmp_path: Path) -> None:
    process = _up(tmp_path, "--only", "stores,triton", "--json")
    while not (tmp_path / "logs").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 0
    assert not (tmp_path / "run").exists()
    with suppress(FileNotFoundError):
        assert not (tmp_path / "postgres/postmaster.pid").exists()


def test_killed_parent_leaves_no_process_and_the_next_start_works(tmp_path: Path) -> None:
    process = _up(tmp_path, "--only", "stores,triton", "--model-repository", str(_repository(tmp_path)), "--json")
    answer = _ready(process)
    environment, pids = answer["environment"], list(answer["processes"].values())
    _sql(environment, "CREATE TABLE kept AS SELECT 7 AS n", "SELECT 1")
    triton_client.InferenceServerClient(environment["CONTRAFACT_TRITON_URL"]).load_model("nothing")
    stubs = [child.pid for child in psutil.Process(answer["processes"]["triton"]).children(recursive=True)]
    assert stubs
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while (alive := [pid for pid in pids + stubs if _alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive
    with running_stack(tmp_path, only=STORES) as stack:
        assert _sql(stack.environment, "SELECT n FROM kept") == 7


def test_next_start_waits_for_a_stack_killed_just_now(tmp_path: Path) -> None:
    process = _up(tmp_path, "--only", "stores", "--json")
    answer = _ready(process)
    # As after a power cut in a container: the server is gone without a word, its pid is a stranger's.
    os.kill(answer["processes"]["postgres"], signal.SIGSTOP)
    process.kill()
    process.wait()
    os.kill(answer["processes"]["postgres"], signal.SIGKILL)
    (tmp_path / "postgres/postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path}\n")
    with running_stack(tmp_path, only=STORES) as stack:
        assert _sql(stack.environment, "SELECT 1") == 1


def _repository(folder: Path) -> Path:
    """A model repository with one model that does nothing."""
    version = folder / "models/nothing/1"
    version.mkdir(parents=True)
    (version / "model.py").write_text("class TritonPythonModel:\n    def execute(self, requests):\n        return []\n")
    tensors = "".join(f'{kind} [{{name: "{kind}" data_type: TYPE_FP32 dims: [1]}}]\n' for kind in ("input", "output"))
    (version.parent / "config.pbtxt").write_text(f'backend: "python"\n{tensors}')
    return folder / "models"


def test_triton_leaves_no_stub_and_no_region(tmp_path: Path) -> None:
    with running_stack(tmp_path, only={"triton"}, model_repository=_repository(tmp_path)) as stack:
        client = triton_client.InferenceServerClient(stack.environment["CONTRAFACT_TRITON_URL"])
        assert client.get_model_repository_index().models[0].state == ""  # nothing loaded by itself
        client.load_model("nothing")
        prefix = stack._folder.shm_prefix
        assert list(Path("/dev/shm").glob(f"{prefix}*"))
        stubs = [child.pid for child in psutil.Process(stack.processes["triton"].pid).children(recursive=True)]
        assert stubs
        # The worst case: Triton itself is killed, and its stub hangs.
        os.kill(stubs[0], signal.SIGSTOP)
        first = stack.processes["triton"].pid
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (
            stack.processes["triton"].pid != first and _serves(stack.environment["CONTRAFACT_TRITON_URL"])
        ):
            time.sleep(0.05)
        assert _serves(stack.environment["CONTRAFACT_TRITON_URL"])  # again, at the same address
        assert not _alive(stubs[0])
    assert not list(Path("/dev/shm").glob(f"{prefix}*"))


def _serves(address: str) -> bool:
    with suppress(Exception):
        return bool(triton_client.InferenceServerClient(address).is_server_ready())
    return False


def test_a_killed_store_comes_back_with_its_data(tmp_path: Path) -> None:
    said: list[str] = []
    with running_stack(tmp_path, only={"postgres"}, report=said.append) as stack:
        _sql(stack.environment, "CREATE TABLE kept AS SELECT 7 AS n", "SELECT 1")
        first = stack.processes["postgres"].pid
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any("ready again" in line for line in said):
            time.sleep(0.05)
        assert _sql(stack.environment, "SELECT n FROM kept") == 7
    assert any("killed by SIGKILL" in line and "starting it again" in line for line in said)


def test_what_cannot_start_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey/appendonlydir").write_text("not a folder")
    process = _up(tmp_path, "--only", "stores", "--json")
    assert process.stderr is not None
    lines = process.stderr.read().splitlines()
    assert process.wait(100) == 1
    told = [line for line in lines if line.startswith("contrafact:")]
    assert len(told) == 1
    assert lines[-1] == told[0]
    assert "valkey failed to start: exit status 1" in told[0]
    assert "appendonlydir" in told[0]
    assert f"(log: {tmp_path}/logs/valkey.log)" in told[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.asyncio
async def test_gives_up_on_what_dies_again_and_again(tmp_path: Path) -> None:
    async with Stack(tmp_path, only={"valkey"}, restarts=1) as stack:
        for _ in range(2):
            first = stack.processes["valkey"].pid
            os.kill(first, signal.SIGKILL)
            for _ in range(6000):
                await asyncio.sleep(0.01)
                if stack.processes["valkey"].pid != first and stack.processes["valkey"].running:
                    await asyncio.sleep(0.3)
                    break
        with pytest.raises(StackError, match=r"valkey ended: killed by SIGKILL.*given up after 1 restarts"):
            await asyncio.wait_for(stack.wait(), 60)


@pytest.mark.asyncio
async def test_a_child_that_ignores_the_signal_is_killed_with_what_it_started(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 1000 & echo started; while :; do sleep 1000; done"
    command = Command("stubborn", ["sh", "-c", script], dict(os.environ), stop_seconds=0.2)
    child = Child(command, tmp_path)
    await child.spawn()
    while "started" not in (tmp_path / "stubborn.log").read_text():
        await asyncio.sleep(0.01)
    descendants = psutil.Process(child.pid).children(recursive=True)
    await child.stop()
    assert descendants
    assert not [process for process in descendants if _alive(process.pid)]


@pytest.mark.asyncio
async def test_last_line_prefers_trouble_and_logs_stay_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'echo "Error: no such thing"; echo bye; exit 3'
    child = Child(Command("failing", ["sh", "-c", script], dict(os.environ)), tmp_path)
    with pytest.raises(StackError, match=r"^failing failed to start: exit status 3: Error: no such thing \(log: .*\)$"):
        await replace_ready(child).start()
    monkeypatch.setattr("servers.local.process.LOG_LIMIT_BYTES", 10)
    child.trim_log()
    assert child.log.stat().st_size == 0
    assert "bye" in child.log.with_suffix(".log.1").read_text()


def replace_ready(child: Child) -> Child:
    """The child with a readiness that never comes."""

    async def never() -> bool:
        return False

    child.command = replace(child.command, ready=never)
    return child


def test_missing_stub_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_module, "_VERSION", "3.99")
    told = r"^triton cannot start: no stub for Python 3\.99 on Linux .*3\.11"
    with pytest.raises(StackError, match=told), running_stack(tmp_path, only={"triton"}):
        pass
