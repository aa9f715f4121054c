"""The command line: exit codes, lines for machines, interruption, and how quickly it answers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from contrafact.v1 import audio_pb2, job_pb2, stem_pb2

from tests.clients.command import RUN, contrafact, start
from tests.clients.faulty_peer import JOB, TRACK, Peer, artifact, chunk, fault

pytestmark = pytest.mark.asyncio
DATA = os.urandom(3000)


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "My song.mp3"
    path.write_bytes(os.urandom(700_000))
    return path


@pytest.fixture
def separating(peer: Peer) -> Peer:
    """The peer about to separate the vocals of a track."""
    vocals = artifact("vocals", DATA)
    peer.track.audio.seconds = 3.0
    peer.stem = vocals
    running = job_pb2.Job(name=JOB, state=job_pb2.JOB_STATE_RUNNING)
    done = job_pb2.Job(name=JOB, state=job_pb2.JOB_STATE_SUCCEEDED, artifacts=[vocals], warnings=["3 clipped"])
    progress = job_pb2.Progress(stage=job_pb2.STAGE_SEPARATE, fraction=0.5)
    progress.eta.FromSeconds(7)
    peer.watches = [
        [
            job_pb2.JobEvent(cursor="1-0", job=running),
            job_pb2.JobEvent(cursor="2-0", progress=progress),
            job_pb2.JobEvent(cursor="3-0", job=done),
        ]
    ]
    first = stem_pb2.StreamStemsResponse(stem=vocals.stem, chunk=chunk(0, DATA[:1000]), frames_ready=9)
    rest = stem_pb2.StreamStemsResponse(stem=vocals.stem, chunk=chunk(1000, DATA[1000:]))
    peer.streams = [[first, fault("UNAVAILABLE")], [rest, stem_pb2.StreamStemsResponse(stem=vocals.stem, end=vocals)]]
    return peer


async def test_separate_writes_stems_and_says_where(separating: Peer, song: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text, errors = await contrafact(
        "separate", str(song), "-o", str(out), "--stems", "vocals", "--address", separating.address
    )
    assert code == 0, errors
    assert text == f"{out / 'vocals.flac'}\n"
    assert (out / "vocals.flac").read_bytes() == DATA
    assert "separate  50%  7 s left" in errors
    assert "warning: 3 clipped" in errors
    assert "first audio after" in errors


async def test_separate_prints_json_lines_and_nothing_else(separating: Peer, song: Path, tmp_path: Path) -> None:
    code, text, errors = await contrafact(
        "separate", str(song), "-o", str(tmp_path / "out"), "--stems", "vocals", "--json",
        CONTRAFACT_ADDRESS=separating.address,
    )  # fmt: skip
    assert (code, errors) == (0, "")
    lines = [json.loads(line) for line in text.splitlines()]
    assert {line["event"] for line in lines} == {"upload", "track", "job", "progress", "stem", "note", "done"}
    assert lines[-1]["event"] == "done"
    assert lines[-1]["files"] == {"vocals": str(tmp_path / "out" / "vocals.flac")}
    assert lines[-1]["first_audio_seconds"] <= lines[-1]["seconds"]


async def test_separate_shows_a_bar_on_a_terminal(separating: Peer, song: Path, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUN, "separate", str(song), "-o", str(tmp_path / "out"), "--stems", "vocals",
        stdout=asyncio.subprocess.PIPE, stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "CONTRAFACT_ADDRESS": separating.address},
    )  # fmt: skip
    os.close(theirs)
    out, _ = await process.communicate()
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert process.returncode == 0, shown
    assert out.decode() == f"{tmp_path / 'out' / 'vocals.flac'}\n"
    assert "vocals is finished" in shown
    assert "\x1b[" in shown
    assert "first audio after" in shown


async def test_separate_without_live_downloads_at_the_end(separating: Peer, song: Path, tmp_path: Path) -> None:
    separating.streams = [[chunk(0, DATA)]]
    code, _, errors = await contrafact(
        "separate", str(song), "-o", str(tmp_path / "out"), "--no-live", "--address", separating.address
    )
    assert code == 0, errors
    assert (tmp_path / "out" / "vocals.flac").read_bytes() == DATA
    assert not separating.of(stem_pb2.StreamStemsRequest)


async def test_a_failed_job_is_exit_code_1(separating: Peer, song: Path, tmp_path: Path) -> None:
    error = job_pb2.JobError(reason="MODEL_CRASHED", message="it\nbroke")
    failed = job_pb2.Job(name=JOB, state=job_pb2.JOB_STATE_FAILED, error=error)
    separating.watches = [[job_pb2.JobEvent(cursor="1-0", job=failed)]]
    separating.streams = [[_hang]]
    code, text, errors = await contrafact(
        "separate", str(song), "-o", str(tmp_path / "out"), "--address", separating.address
    )
    assert (code, text) == (1, "")
    assert errors.splitlines()[-1] == "contrafact: MODEL_CRASHED: it broke"
    assert list((tmp_path / "out").iterdir()) == []


async def test_wrong_usage_is_exit_code_2(song: Path) -> None:
    for arguments in (
        ["separate", "no-such-file.mp3"],
        ["separate", str(song), "--stems", "guitar"],
        ["separate", str(song), "--format", "mp9"],
        ["nonsense"],
    ):
        code, text, errors = await contrafact(*arguments)
        assert (code, text) == (2, ""), arguments
        assert "Traceback" not in errors


async def test_no_server_is_exit_code_3(song: Path) -> None:
    code, text, errors = await contrafact("separate", str(song), "--address", "127.0.0.1:1")
    assert (code, text) == (3, "")
    assert errors == "contrafact: CANNOT_CONNECT: no server answers at 127.0.0.1:1\n"


async def test_refused_input_is_exit_code_4(peer: Peer, song: Path) -> None:
    peer.upload_faults = [(1, 0, fault("INVALID_ARGUMENT", "NOT_AUDIO", "is a\x1b[31m picture", spec="x"))] * 2
    code, _, errors = await contrafact("tracks", "upload", str(song), "--address", peer.address)
    assert code == 4
    assert errors.splitlines()[-1] == "contrafact: NOT_AUDIO: is a\ufffd[31m picture (spec: x)"
    code, text, errors = await contrafact("separate", str(song), "--json", "--address", peer.address)
    assert code == 4
    last = json.loads(text.splitlines()[-1])
    assert (last["reason"], last["exit_code"], last["failed"]) == ("NOT_AUDIO", 4, True)


async def _hang(_context: Any) -> None:
    await asyncio.sleep(60)


async def test_interrupt_cancels_the_job(separating: Peer, song: Path, tmp_path: Path) -> None:
    separating.watches[0][2:] = [_hang]
    separating.streams = [[_hang]]
    process = await start("separate", str(song), "-o", str(tmp_path / "out"), "--json", "--address", separating.address)
    assert process.stdout is not None
    while b'"progress"' not in await process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 130
    assert separating.of(job_pb2.CancelJobRequest)[0].name == JOB
    assert err == b""
    assert json.loads(out.splitlines()[-1])["interrupted"] is True
    assert list((tmp_path / "out").iterdir()) == []


async def test_second_interrupt_exits_at_once(separating: Peer, song: Path, tmp_path: Path) -> None:
    separating.watches[0][2:] = [_hang]
    separating.streams = [[_hang]]
    process = await start("separate", str(song), "-o", str(tmp_path / "out"), "--json", "--address", separating.address)
    assert process.stdout is not None
    while b'"progress"' not in await process.stdout.readline():
        pass
    separating.unary_faults = [_hang]  # the cancellation never answers
    process.send_signal(signal.SIGINT)
    while not separating.of(job_pb2.CancelJobRequest):
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 130
    assert time.monotonic() - began < 8  # an answer would be waited for for ten


async def test_lists_are_tables_or_json(peer: Peer) -> None:
    code, text, _ = await contrafact("tracks", "list", "--limit", "5", "--address", peer.address)
    assert code == 0
    assert len(text.splitlines()) == 6
    code, text, _ = await contrafact("tracks", "list", "--json", "--address", peer.address)
    assert [json.loads(line)["name"] for line in text.splitlines()][-1] == "tracks/2-1"
    peer.job.state = job_pb2.JOB_STATE_QUEUED
    code, text, _ = await contrafact("jobs", "get", JOB, "--address", peer.address)
    assert "queued" in text
    code, text, _ = await contrafact("tracks", "get", TRACK, "--json", "--address", peer.address)
    assert json.loads(text)["name"] == TRACK


async def test_help_is_quick_and_imports_neither_grpc_nor_a_server() -> None:
    code = (
        "import sys, time; began = time.process_time()\n"
        "from contrafact._cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "took = time.process_time() - began\n"
        "began = time.process_time()\n"
        "for _ in range(10_000_000): pass\n"
        "counted = time.process_time() - began\n"
        "heavy = [each for each in ('grpc', 'torch', 'servers', 'numpy', 'google.protobuf') if each in sys.modules]\n"
        "print(took / counted, *heavy, file=sys.stderr)"
    )
    took = []
    for _ in range(3):  # the best of three: other work may be going on
        _, text, errors = await contrafact("--help", code=code)
        assert "separate" in text
        counts, *heavy = errors.split()
        assert heavy == []
        took.append(float(counts))
    assert min(took) < 2.5  # as long as Python takes to count to 25 million: half a second, say


async def test_commands_of_entry_points_are_listed_but_loaded_only_when_run(tmp_path: Path) -> None:
    (tmp_path / "plugin_for_test.py").write_text(
        "import sys\nprint('imported', file=sys.stderr)\ndef greet(name: str) -> None:\n    print('hello', name)\n"
    )
    info = tmp_path / "plugin_for_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-for-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[contrafact.commands]\ngreet = plugin_for_test:greet\nbroken = not_there_at_all:x\n"
    )
    path = {"PYTHONPATH": str(tmp_path)}
    code, text, errors = await contrafact("--help", **path)
    assert (code, errors) == (0, "")
    assert "Provided by plugin-for-test." in text
    code, text, errors = await contrafact("greet", "you", **path)
    assert (code, text, errors) == (0, "hello you\n", "imported\n")
    code, _, errors = await contrafact("broken", **path)
    assert code == 2
    assert "Traceback" not in errors


async def test_version() -> None:
    code, text, _ = await contrafact("version")
    assert code == 0
    assert text.startswith("contrafact 0.")


async def test_words_match_the_api() -> None:
    from contrafact import _words

    kinds = set(audio_pb2.StemKind.values()) - {0}
    assert set(_words.stem_kinds("all")) == kinds
    assert [_words.stem_word(kind) for kind in _words.stem_kinds("drums,vocals,drums")] == ["drums", "vocals"]
    assert {_words.extension(each) for each in audio_pb2.AudioFormat.values()} == {"flac", "wav", "mp3", "opus"}
