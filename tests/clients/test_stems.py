"""Stems and downloads arrive whole and right, or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from contrafact import Client, DataLoss, InvalidArgument, JobCancelled, JobFailed, StemProgress, Unavailable
from contrafact.v1 import audio_pb2, job_pb2, stem_pb2

from tests.clients.faulty_peer import JOB, QUICK, TRACK, Peer, Wire, artifact, chunk, fault

pytestmark = pytest.mark.asyncio
VOCALS, DRUMS = os.urandom(3000), os.urandom(2000)
V, D = audio_pb2.STEM_KIND_VOCALS, audio_pb2.STEM_KIND_DRUMS


def piece(stem: Any, data: bytes, begin: int, end: int) -> stem_pb2.StreamStemsResponse:
    return stem_pb2.StreamStemsResponse(stem=stem, chunk=chunk(begin, data[begin:end]), frames_ready=end)


def end(stem: Any, data: bytes) -> stem_pb2.StreamStemsResponse:
    return stem_pb2.StreamStemsResponse(stem=stem, end=artifact(audio_pb2.StemKind.Name(stem)[10:].lower(), data))


@pytest.fixture
def separation(peer: Peer) -> Peer:
    """The peer with a job that makes vocals and drums."""
    peer.job.separation.CopyFrom(job_pb2.SeparationSpec(track=TRACK, stems=[V, D]))
    return peer


def positions(peer: Peer) -> list[dict[Any, int]]:
    return [{each.stem: each.offset for each in request.positions} for request in peer.of(stem_pb2.StreamStemsRequest)]


BROKEN: list[list[Any]] = [
    [piece(V, VOCALS, 0, 1000), piece(D, DRUMS, 0, 500), fault("UNAVAILABLE")],
    # Bytes that were received before come again, whole and in part.
    [piece(V, VOCALS, 0, 1000), piece(V, VOCALS, 900, 1500), piece(V, VOCALS, 900, 1500), fault("CANCELLED")],
    [piece(D, DRUMS, 500, 2000), end(D, DRUMS)],  # ends without an error, and without the vocals
    [piece(V, VOCALS, 1500, 3000), piece(D, DRUMS, 0, 500), end(D, DRUMS), end(V, VOCALS)],
]


async def test_resumes_each_stem_at_its_own_offset(separation: Peer, client: Client) -> None:
    separation.streams = list(BROKEN)
    got = {V: b"", D: b""}
    ends = []
    async for response in (await client.job(JOB)).stems_live():
        if response.HasField("end"):
            ends.append(response.stem)
        else:
            assert response.chunk.offset == len(got[response.stem])
            got[response.stem] += response.chunk.data
    assert got == {V: VOCALS, D: DRUMS}
    assert ends == [D, V]
    assert positions(separation) == [{V: 0, D: 0}, {V: 1000, D: 500}, {V: 1500, D: 500}, {V: 1500}]


async def test_begins_where_it_is_told_to(separation: Peer, client: Client) -> None:
    separation.streams = [[piece(D, DRUMS, 700, 2000), end(D, DRUMS)]]
    responses = [each async for each in (await client.job(JOB)).stems_live({"drums": 700})]
    assert responses[0].chunk.data == DRUMS[700:]
    assert positions(separation) == [{D: 700}]


async def test_saves_stems_while_they_are_made(separation: Peer, client: Client, tmp_path: Path) -> None:
    separation.streams = list(BROKEN)
    seen: list[StemProgress] = []
    parts: list[bool] = []

    def progress(at: StemProgress) -> None:
        seen.append(at)
        part = at.path.with_name(at.path.name + ".part")
        parts.append(at.path.exists() if at.finished else part.stat().st_size == at.size_bytes)

    saved = await (await client.job(JOB)).save_live(tmp_path / "new" / "out", progress)
    assert {stem: path.read_bytes() for stem, path in saved.items()} == {"vocals": VOCALS, "drums": DRUMS}
    assert sorted(each.name for each in (tmp_path / "new" / "out").iterdir()) == ["drums.flac", "vocals.flac"]
    assert all(parts)
    assert seen[0].frames_ready == 1000


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ([stem_pb2.StreamStemsResponse(stem=V, chunk=audio_pb2.DataChunk(data=b"x", crc32c=1))], "CHUNK_CORRUPT"),
        ([piece(V, VOCALS, 0, 100), piece(V, VOCALS, 101, 200)], "CHUNK_MISSING"),
        ([piece(V, VOCALS, 0, 3000), end(V, VOCALS[::-1])], "CONTENT_MISMATCH"),
        ([piece(V, VOCALS, 0, 3000), end(V, VOCALS[:10])], "CONTENT_MISMATCH"),
    ],
)
async def test_damage_leaves_no_file(
    separation: Peer, client: Client, tmp_path: Path, script: list[Any], reason: str
) -> None:
    separation.streams = [script]
    with pytest.raises(DataLoss) as caught:
        await (await client.job(JOB)).save_live(tmp_path)
    assert caught.value.reason == reason
    assert list(tmp_path.iterdir()) == []


async def test_an_end_that_comes_too_early_is_a_break(separation: Peer, client: Client) -> None:
    separation.streams = [[piece(V, VOCALS, 0, 2999), end(V, VOCALS)] for _ in range(9)]
    with pytest.raises(Unavailable):
        [each async for each in (await client.job(JOB)).stems_live({"vocals": 0})]
    assert len(separation.of(stem_pb2.StreamStemsRequest)) == QUICK.attempts


@pytest.mark.parametrize("ending", [[fault("FAILED_PRECONDITION", "JOB_ENDED")], []])
async def test_says_how_the_job_ended(separation: Peer, client: Client, ending: list[Any]) -> None:
    job = await client.job(JOB)
    separation.streams = [[piece(V, VOCALS, 0, 5), *ending], list(ending)]
    separation.job.state = job_pb2.JOB_STATE_FAILED
    separation.job.error.reason = "OUT_OF_MEMORY"
    with pytest.raises(JobFailed) as caught:
        [each async for each in job.stems_live()]
    assert caught.value.reason == "OUT_OF_MEMORY"
    separation.job.state = job_pb2.JOB_STATE_CANCELLED
    with pytest.raises(JobCancelled):
        [each async for each in job.stems_live()]


async def test_survives_a_cut_connection(separation: Peer, wire: Wire, tmp_path: Path) -> None:
    data = os.urandom(600_000)
    whole = [piece(V, data, at, at + 20_000) for at in range(0, 600_000, 20_000)] + [end(V, data)]
    separation.job.separation.stems[:] = [V]
    separation.streams = [list(whole) for _ in range(4)]  # always from the beginning: most of it is known
    wire.cuts = [("from", 150_000), ("from", 350_000)]
    async with Client(wire.address, retry=QUICK) as client:
        saved = await (await client.job(JOB)).save_live(tmp_path)
    assert wire.cut == 2
    assert saved["vocals"].read_bytes() == data


async def test_download_resumes_and_appears_whole(peer: Peer, client: Client, tmp_path: Path) -> None:
    peer.stem = artifact("vocals", VOCALS)
    peer.streams = [
        [chunk(0, VOCALS[:1000]), fault("UNAVAILABLE")],
        [chunk(500, VOCALS[500:2000])],
        [chunk(2000, VOCALS[2000:])],
    ]
    path = await client.download(peer.stem.name, tmp_path)
    assert path == tmp_path / "htdemucs-1.vocals.flac"
    assert path.read_bytes() == VOCALS
    assert [each.offset for each in peer.of(stem_pb2.DownloadStemRequest)] == [0, 1000, 2000]


async def test_download_of_damaged_bytes_keeps_the_old_file(peer: Peer, client: Client, tmp_path: Path) -> None:
    peer.stem = artifact("vocals", VOCALS)
    peer.stem.sha256 = hashlib.sha256(b"other").hexdigest()
    peer.streams = [[chunk(0, VOCALS)]]
    path = tmp_path / "v.flac"
    path.write_bytes(b"old")
    with pytest.raises(DataLoss):
        await client.download(peer.stem, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


async def test_download_of_an_unnamed_refusal_leaves_nothing(peer: Peer, client: Client, tmp_path: Path) -> None:
    peer.stem = artifact("vocals", VOCALS)
    peer.streams = [[fault("INVALID_ARGUMENT", "NO")]]
    with pytest.raises(InvalidArgument):
        await client.download(peer.stem, tmp_path / "v.flac")
    assert list(tmp_path.iterdir()) == []
