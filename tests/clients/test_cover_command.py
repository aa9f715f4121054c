"""The commands about voices and covers."""

from __future__ import annotations

import array
import asyncio
import json
import os
import signal
import struct
import wave
from pathlib import Path
from typing import Any

import pytest
from contrafact.v1 import conversion_pb2, cover_pb2, job_pb2, track_pb2, voice_pb2, voice_pool_pb2

from tests.clients.command import contrafact, start
from tests.clients.faulty_peer import JOB, TRACK, chunk, fault
from tests.clients.faulty_voices import VOICE, VoicePeer, cover_artifact

DATA = os.urandom(3000)


async def _hang(_context: Any) -> None:
    await asyncio.sleep(60)


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "My song.mp3"
    path.write_bytes(os.urandom(700_000))
    return path


@pytest.fixture
def covering(peer: VoicePeer) -> VoicePeer:
    """The peer about to make a cover."""
    made = cover_artifact(DATA)
    peer.track.audio.seconds = 3.0
    peer.library = [peer.voice]
    running = job_pb2.Job(name=JOB, state=job_pb2.JOB_STATE_RUNNING)
    done = job_pb2.Job(name=JOB, state=job_pb2.JOB_STATE_SUCCEEDED, artifacts=[made], warnings=["3 limited"])
    progress = job_pb2.Progress(stage=job_pb2.STAGE_CONVERT, fraction=0.5)
    progress.eta.FromSeconds(7)
    peer.watches = [
        [
            job_pb2.JobEvent(cursor="1-0", job=running),
            job_pb2.JobEvent(cursor="2-0", progress=progress),
            job_pb2.JobEvent(cursor="3-0", job=done),
        ]
    ]
    first = cover_pb2.StreamCoverResponse(chunk=chunk(0, DATA[:1000]), frames_ready=9)
    rest = cover_pb2.StreamCoverResponse(chunk=chunk(1000, DATA[1000:]))
    peer.streams = [[first, fault("UNAVAILABLE")], [rest, cover_pb2.StreamCoverResponse(end=made)]]
    return peer


async def test_cover_writes_the_cover_and_says_where(covering: VoicePeer, song: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "cover.mp3"
    code, text, errors = await contrafact(
        "cover", str(song), "--voice", "anna", "-o", str(out), "--key", "-3", "--index-rate", "0",
        "--no-match-loudness", "--address", covering.address,
    )  # fmt: skip
    assert code == 0, errors
    assert text == f"{out}\n"
    assert out.read_bytes() == DATA
    assert list(out.parent.iterdir()) == [out]
    assert "convert  50%  7 s left" in errors
    assert "warning: 3 limited" in errors
    assert "sung by Anna" in errors
    assert "first audio after" in errors
    (request,) = covering.of(cover_pb2.CreateCoverRequest)
    assert (request.spec.voice, request.spec.format) == (VOICE, 3)
    assert (request.spec.conversion.semitones, request.spec.mix.match_loudness) == (-3, False)


async def test_cover_of_a_track_prints_json_lines(covering: VoicePeer, tmp_path: Path) -> None:
    code, text, errors = await contrafact(
        "cover", TRACK, "--voice", VOICE, "--key", "auto", "-o", str(tmp_path / "c.flac"), "--json",
        CONTRAFACT_ADDRESS=covering.address,
    )  # fmt: skip
    assert (code, errors) == (0, "")
    lines = [json.loads(line) for line in text.splitlines()]
    assert {line["event"] for line in lines} == {"track", "job", "progress", "cover", "note", "done"}
    assert lines[-1]["files"] == {"cover": str(tmp_path / "c.flac")}
    assert lines[-1]["first_audio_seconds"] <= lines[-1]["seconds"]
    assert covering.of(cover_pb2.CreateCoverRequest)[0].spec.conversion.auto_octave
    assert not covering.of(track_pb2.UploadSpec)


async def test_cover_goes_to_a_player(covering: VoicePeer, song: Path) -> None:
    process = await start("cover", str(song), "--voice", "Anna", "-o", "-", "--address", covering.address)
    out, errors = await process.communicate()
    assert process.returncode == 0, errors
    assert out == DATA
    assert b"first audio after" in errors


async def test_a_player_that_goes_cancels_the_job(covering: VoicePeer, song: Path) -> None:
    data = os.urandom(1 << 20)
    whole = [cover_pb2.StreamCoverResponse(chunk=chunk(at, data[at : at + 65536])) for at in range(0, 1 << 20, 65536)]
    covering.streams = [[*whole, _hang]]
    covering.watches[0][2:] = [_hang]
    process = await start("cover", str(song), "--voice", "Anna", "-o", "-", "--address", covering.address)
    assert process.stdout is not None
    await process.stdout.readexactly(10)
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    await asyncio.wait_for(covering.cancelled.wait(), 100)
    assert await asyncio.wait_for(process.wait(), 100) == 1


async def test_cover_without_live_downloads_at_the_end(covering: VoicePeer, song: Path, tmp_path: Path) -> None:
    covering.streams = [[chunk(0, DATA)]]
    code, _, errors = await contrafact(
        "cover", str(song), "--voice", "Anna", "-o", str(tmp_path / "c.flac"), "--no-live", "--address",
        covering.address,
    )  # fmt: skip
    assert code == 0, errors
    assert (tmp_path / "c.flac").read_bytes() == DATA
    assert not covering.of(cover_pb2.StreamCoverRequest)


async def test_interrupt_cancels_the_cover(covering: VoicePeer, song: Path, tmp_path: Path) -> None:
    covering.watches[0][2:] = [_hang]
    covering.streams = [[_hang]]
    out = tmp_path / "out" / "c.flac"
    process = await start(
        "cover", str(song), "--voice", "Anna", "-o", str(out), "--json", "--address", covering.address
    )
    assert process.stdout is not None
    while b'"progress"' not in await process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    lines, err = await asyncio.wait_for(process.communicate(), 100)
    assert (process.returncode, err) == (130, b"")
    assert covering.of(job_pb2.CancelJobRequest)[0].name == JOB
    assert json.loads(lines.splitlines()[-1])["interrupted"] is True
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("Anna", "anna"), ("ANN", "anna"), ("bert", "bert"), ("o", "otto"), ("otto", "otto"), (VOICE, "Anna")],
)
async def test_voices_are_found_by_name(peer: VoicePeer, wanted: str, found: str) -> None:
    names = ["Bertram", "anna", "bert", "otto"]
    peer.library = [voice_pb2.Voice(name=f"voices/{each}", display_name=each) for each in names]
    code, text, errors = await contrafact("voices", "show", wanted, "--json", "--address", peer.address)
    assert code == 0, errors
    assert json.loads(text)["display_name"] == found


async def test_voices_that_are_not_found_are_told_with_what_there_is(peer: VoicePeer, song: Path) -> None:
    names = ["Bertram", "Anna", "Anna", "Egbert"]
    peer.library = [voice_pb2.Voice(name=f"voices/{at}", display_name=each) for at, each in enumerate(names)]
    for wanted, listed in (
        ("bert", "Bertram (voices/0), Egbert (voices/3)"),
        ("Anna", "Anna (voices/1), Anna (voices/2)"),
        ("Otto", "no voice is called 'Otto'; there are Bertram (voices/0), Anna"),
    ):
        code, text, errors = await contrafact("cover", str(song), "--voice", wanted, "--address", peer.address)
        assert (code, text) == (2, "")
        assert listed in errors
        assert len(errors.splitlines()) == 1
    assert not peer.of(track_pb2.UploadSpec)


async def test_wrong_usage_is_exit_code_2(song: Path, tmp_path: Path) -> None:
    picture = tmp_path / "x.wav"
    picture.write_bytes(b"GIF89a" * 9)
    for arguments in (
        ["cover", str(song)],
        ["cover", "nothing.mp3", "--voice", "x"],
        ["cover", str(song), "--voice", "x", "--key", "high"],
        ["cover", str(song), "--voice", "x", "--format", "mp9"],
        ["cover", str(song), "--voice", "x", "--index-rate", "2"],
        ["cover", str(song), "--voice", "x", "-o", "-", "--json"],
        ["cover", str(song), "--voice", "x", "-o", str(tmp_path)],
        ["convert", "--voice", "x"],
        ["convert", "--voice", "x", "--raw"],
        ["convert", str(picture), "out.wav", "--voice", "x"],
        ["voices", "import", "nothing.pth"],
        ["voices", "update", "x"],
        ["voices", "pool", "--strategy", "random"],
    ):
        code, text, errors = await contrafact(*arguments, "--address", "127.0.0.1:1")
        assert (code, text) == (2, ""), (arguments, errors)
        assert "Traceback" not in errors


async def test_voices_are_imported_listed_and_changed(peer: VoicePeer, tmp_path: Path) -> None:
    weights, index = tmp_path / "Anna M.pth", tmp_path / "a.index"
    weights.write_bytes(b"w" * 1000)
    index.write_bytes(b"i" * 1000)
    peer.voice.sample_rate, peer.voice.rvc_version, peer.voice.warmth = 40_000, "v2", voice_pb2.WARMTH_WARM
    peer.library = [peer.voice]
    at = ("--address", peer.address)
    code, text, errors = await contrafact(
        "voices", "import", str(weights), "--index", str(index), "--tag", "alto", "--tag", "pop", *at
    )
    assert (code, text) == (0, f"{VOICE}\n"), errors
    (spec,) = peer.of(voice_pb2.VoiceImportSpec)
    assert (spec.display_name, list(spec.tags)) == ("Anna M", ["alto", "pop"])
    assert peer.imported == [{1: b"w" * 1000, 2: b"i" * 1000}]
    code, text, _ = await contrafact("voices", "list", *at)
    assert text.splitlines()[1].split() == [VOICE, "40000", "Hz", "v2", "-", "0", "warm", "-", "-", "Anna"]
    code, text, _ = await contrafact(
        "voices", "update", "anna", "--no-tags", "--pitch-range", "100", "200", "300", "--json", *at
    )
    assert code == 0
    assert sorted(peer.of(voice_pb2.UpdateVoiceRequest)[0].update_mask.paths) == ["pitch_range", "tags"]
    for command, kind in (("warm", voice_pb2.WarmVoiceRequest), ("delete", voice_pb2.DeleteVoiceRequest)):
        code, _, errors = await contrafact("voices", command, "anna", *at)
        assert code == 0, errors
        assert peer.of(kind)[0].name == VOICE


async def test_the_pool_is_shown_and_changed(peer: VoicePeer) -> None:
    peer.pool.settings.capacity, peer.pool.settings.strategy = 7, voice_pool_pb2.POOL_STRATEGY_LRU_LFU
    code, text, _ = await contrafact("voices", "pool", "--address", peer.address)
    assert code == 0
    shown = dict(line.split(maxsplit=1) for line in text.splitlines() if len(line.split()) == 2)
    assert (shown["capacity"], shown["strategy"], shown["enabled"]) == ("7", "lru+lfu", "no")
    assert "does not answer" in text
    code, text, _ = await contrafact(
        "voices", "pool", "--disable", "--ttl", "90", "--strategy", "ttl", "--json", "--address", peer.address
    )
    assert json.loads(text)["settings"]["capacity"] == 7
    (request,) = peer.of(voice_pool_pb2.UpdateVoicePoolRequest)
    assert sorted(request.update_mask.paths) == ["enabled", "idle_ttl", "strategy"]


def write_wav(path: Path, samples: list[int], channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(array.array("h", samples).tobytes())
    return path


async def test_convert_takes_a_wav_file_to_another(peer: VoicePeer, tmp_path: Path) -> None:
    given = write_wav(tmp_path / "in.wav", [16_384, -16_384, 8_192, 8_192] * 20_000, channels=2)
    out = tmp_path / "out.wav"
    code, text, errors = await contrafact(
        "convert", str(given), str(out), "--voice", VOICE, "--key", "12", "--address", peer.address
    )
    assert (code, text) == (0, f"{out}\n"), errors
    assert peer.of(conversion_pb2.ConvertVoiceConfig)[0].sample_rate == 16_000
    assert array.array("f", bytes(peer.heard)) == array.array("f", [0.0, 0.25] * 20_000)
    data = out.read_bytes()
    assert struct.unpack_from("<4sI4s4sIHHIIHH", data) == (
        b"RIFF", len(data) - 8, b"WAVE", b"fmt ", 18, 3, 1, 16_000, 64_000, 4, 32,
    )  # fmt: skip
    assert struct.unpack_from("<4sI", data, 50) == (b"data", 160_000)
    assert len(data) == 58 + 160_000
    peer.heard.clear()
    again = tmp_path / "again.wav"  # what we wrote can be read: float, mono
    code, _, errors = await contrafact("convert", str(out), str(again), "--voice", VOICE, "--address", peer.address)
    assert code == 0, errors
    assert bytes(peer.heard) == data[58:]


async def test_a_conversion_that_fails_leaves_no_file(peer: VoicePeer, tmp_path: Path) -> None:
    given = write_wav(tmp_path / "in.wav", [1] * 40_000)
    peer.live_faults = [(2, fault("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS"))]
    code, _, errors = await contrafact(
        "convert", str(given), str(tmp_path / "out.wav"), "--voice", VOICE, "--address", peer.address
    )
    assert code == 4
    assert errors.splitlines()[-1].startswith("contrafact: TOO_MANY_STREAMS")
    assert list(tmp_path.iterdir()) == [given]


async def test_convert_sits_between_microphone_and_speaker(peer: VoicePeer) -> None:
    process = await start(
        "convert",
        "--raw",
        "--rate",
        "16000",
        "--voice",
        VOICE,
        "--address",
        peer.address,
        stdin=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"abcde")
    assert await asyncio.wait_for(process.stdout.readexactly(4), 100) == b"dcba"  # before the end is known
    out, errors = await asyncio.wait_for(process.communicate(b"fgh"), 100)
    assert (process.returncode, out) == (0, b"hgfe")
    assert b"0.30 s later" in errors


async def test_convert_of_nothing_is_nothing(peer: VoicePeer) -> None:
    process = await start("convert", "--raw", "--rate", "16000", "--voice", VOICE, "--address", peer.address)
    out, errors = await asyncio.wait_for(process.communicate(), 100)
    assert (process.returncode, out) == (0, b""), errors


async def test_interrupt_ends_a_silent_microphone(peer: VoicePeer) -> None:
    process = await start(
        "convert",
        "--raw",
        "--rate",
        "16000",
        "--voice",
        VOICE,
        "--address",
        peer.address,
        stdin=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    assert b"listening" in await process.stderr.readline()
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 130
