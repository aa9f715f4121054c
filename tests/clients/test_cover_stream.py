"""Covers arrive whole and right, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from contrafact import Client, DataLoss, JobCancelled, JobFailed, JobHandle, ResultProgress, Unavailable
from contrafact.v1 import cover_pb2, job_pb2

from tests.clients.faulty_peer import JOB, QUICK, TRACK, Wire, chunk, fault
from tests.clients.faulty_voices import COVER, VOICE, VoicePeer, cover_artifact

DATA, OTHER = os.urandom(3000), os.urandom(2500)


def piece(data: bytes, begin: int, end: int) -> cover_pb2.StreamCoverResponse:
    return cover_pb2.StreamCoverResponse(chunk=chunk(begin, data[begin:end]), frames_ready=end)


def end(data: bytes) -> cover_pb2.StreamCoverResponse:
    return cover_pb2.StreamCoverResponse(end=cover_artifact(data))


@pytest.fixture
async def job(client: Client) -> JobHandle:
    return await client.job(JOB)


def offsets(peer: VoicePeer) -> list[int]:
    return [each.offset for each in peer.of(cover_pb2.StreamCoverRequest)]


async def test_sends_what_was_asked_for(peer: VoicePeer, client: Client) -> None:
    await client.cover(
        peer.track, peer.voice, semitones=-3, index_rate=0.0, pitch_method="Swift-F0", vocals_gain_db=2,
        match_loudness=False, format="mp3", priority="background",
    )  # fmt: skip
    await client.cover(TRACK, VOICE, semitones="auto")
    first, second = peer.of(cover_pb2.CreateCoverRequest)
    said = first.spec.conversion
    assert (first.spec.track, first.spec.voice, first.spec.format) == (TRACK, VOICE, 3)
    assert (said.WhichOneof("key"), said.semitones, said.index_rate, said.pitch_method) == ("semitones", -3, 0, 2)
    assert said.HasField("index_rate")
    assert not said.HasField("protect")
    assert (first.spec.mix.vocals_gain_db, first.spec.mix.match_loudness, first.priority) == (2, False, 2)
    assert second.spec.conversion.auto_octave
    assert not second.spec.mix.HasField("match_loudness")
    for wrong in ({"semitones": "high"}, {"pitch_method": "crepe"}, {"format": "aac"}):
        with pytest.raises(ValueError, match=r"no key|choose from"):
            await client.cover(TRACK, VOICE, **wrong)  # type: ignore[arg-type]


async def test_resumes_where_it_broke_off(peer: VoicePeer, job: JobHandle) -> None:
    peer.streams = [
        [piece(DATA, 0, 1000), fault("UNAVAILABLE")],
        [piece(DATA, 1000, 1500), piece(DATA, 1400, 2000), piece(DATA, 1400, 2000), fault("CANCELLED")],
        [piece(DATA, 2000, 2500), end(DATA)],  # the end before its bytes
        [piece(DATA, 2500, 3000), end(DATA)],
    ]
    got = b""
    async for response in job.stream_cover():
        assert response.HasField("end") or response.chunk.offset == len(got)
        got += response.chunk.data
    assert response.end.name == COVER
    assert got == DATA
    assert offsets(peer) == [0, 1000, 2000, 2500]


async def test_resumes_though_the_job_cannot_be_asked_for(peer: VoicePeer, job: JobHandle) -> None:
    peer.streams = [[piece(DATA, 0, 1000), fault("CANCELLED")], [piece(DATA, 1000, 3000), end(DATA)]]
    peer.unary_faults = [fault("UNAVAILABLE")] * 4  # as often as grpc repeats the call
    assert b"".join([each.chunk.data async for each in job.stream_cover()]) == DATA
    assert peer.unary_faults == []


async def test_a_later_listener_begins_where_it_likes(peer: VoicePeer, job: JobHandle) -> None:
    peer.streams = [[piece(DATA, 700, 3000), end(DATA)]]
    got = [each.chunk.data async for each in job.stream_cover(700)]
    assert b"".join(got) == DATA[700:]


async def test_saves_while_it_is_made(peer: VoicePeer, job: JobHandle, tmp_path: Path) -> None:
    peer.streams = [[piece(DATA, 0, 1000), fault("UNAVAILABLE")], [piece(DATA, 1000, 3000), end(DATA)]]
    path, seen = tmp_path / "new" / "cover.flac", []

    def progress(at: ResultProgress) -> None:
        seen.append((at.size_bytes, at.frames_ready, at.finished))
        assert at.path.exists() == at.finished
        assert at.finished or path.with_name("cover.flac.part").stat().st_size == at.size_bytes

    assert await job.save_cover(path, progress) == path
    assert path.read_bytes() == DATA
    assert list(path.parent.iterdir()) == [path]
    assert seen == [(1000, 1000, False), (3000, 3000, False), (3000, 3000, True)]


@pytest.mark.parametrize("made", [OTHER, DATA[::-1], OTHER * 2])
async def test_begins_anew_when_another_attempt_made_other_bytes(
    peer: VoicePeer, job: JobHandle, tmp_path: Path, made: bytes
) -> None:
    peer.streams = [
        [piece(DATA, 0, 3000), fault("UNAVAILABLE")],
        [fault("OUT_OF_RANGE")] if len(made) < 3000 else [piece(made, 3000, len(made)), end(made)][len(made) == 3000 :],
        [piece(made, 0, len(made)), end(made)],
    ]
    assert (await job.save_cover(tmp_path / "c.flac")).read_bytes() == made
    assert offsets(peer) == [0, 3000, 0]


async def test_damage_leaves_the_old_file(peer: VoicePeer, job: JobHandle, tmp_path: Path) -> None:
    path = tmp_path / "c.flac"
    path.write_bytes(b"old")
    peer.streams = [[piece(DATA, 0, 3000), end(DATA[::-1])]] * 2
    with pytest.raises(DataLoss) as caught:
        await job.save_cover(path)
    assert caught.value.reason == "CONTENT_MISMATCH"
    assert offsets(peer) == [0, 0]
    peer.streams = [[piece(DATA, 0, 100), piece(DATA, 101, 200)]]
    with pytest.raises(DataLoss):
        await job.save_cover(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", [[fault("FAILED_PRECONDITION", "JOB_FAILED")], []])
async def test_says_how_the_job_ended(peer: VoicePeer, job: JobHandle, tmp_path: Path, ending: list[Any]) -> None:
    peer.streams = [[piece(DATA, 0, 5), *ending], list(ending)]
    peer.job.state = job_pb2.JOB_STATE_FAILED
    peer.job.error.reason = "VOICE_LOST"
    with pytest.raises(JobFailed) as caught:
        await job.save_cover(tmp_path / "c.flac")
    assert caught.value.reason == "VOICE_LOST"
    peer.job.state = job_pb2.JOB_STATE_CANCELLED
    with pytest.raises(JobCancelled):
        await job.save_cover(tmp_path / "c.flac")
    assert list(tmp_path.iterdir()) == []


async def test_gives_up_without_progress(peer: VoicePeer, job: JobHandle) -> None:
    peer.streams = [[piece(DATA, 0, 2999), end(DATA)] for _ in range(9)]
    with pytest.raises(Unavailable):
        [each async for each in job.stream_cover()]
    assert len(offsets(peer)) == QUICK.attempts


async def test_survives_a_cut_connection(peer: VoicePeer, wire: Wire, tmp_path: Path) -> None:
    data = os.urandom(600_000)
    whole = [piece(data, at, at + 20_000) for at in range(0, 600_000, 20_000)] + [end(data)]
    peer.streams = [list(whole) for _ in range(4)]
    wire.cuts = [("from", 150_000), ("from", 350_000)]
    async with Client(wire.address, retry=QUICK) as client:
        saved = await (await client.job(JOB)).save_cover(tmp_path / "c.flac")
    assert wire.cut == 2
    assert saved.read_bytes() == data


async def test_a_finished_cover_is_downloaded_by_its_name(peer: VoicePeer, client: Client, tmp_path: Path) -> None:
    peer.cover.artifact.CopyFrom(cover_artifact(DATA))
    peer.streams = [[chunk(0, DATA[:1000]), fault("UNAVAILABLE")], [chunk(1000, DATA[1000:])]] * 2
    path = await client.download(COVER, tmp_path)
    assert path == tmp_path / f"{COVER.removeprefix('covers/')}.flac"
    assert path.read_bytes() == DATA
    assert (await client.download(peer.cover, tmp_path / "named")).read_bytes() == DATA
    assert [each.offset for each in peer.of(cover_pb2.DownloadCoverRequest)] == [0, 1000] * 2
