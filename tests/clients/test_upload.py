"""Uploads go on at the committed offset, whatever breaks."""

from __future__ import annotations

import asyncio
import io
import os
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from contrafact import Client, InvalidArgument, Unavailable
from contrafact.v1 import track_pb2

from tests.clients.faulty_peer import QUICK, Peer, Wire, fault

pytestmark = pytest.mark.asyncio
CHUNK = 512 << 10
DATA = os.urandom(4 * CHUNK + 1234)


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "My song.flac"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path


async def test_sends_everything_with_size_and_sha256_and_only_the_base_name(
    peer: Peer, client: Client, song: Path
) -> None:
    seen: list[tuple[int, int | None]] = []
    track = await client.upload(song, progress=lambda done, total: seen.append((done, total)))
    (spec,) = peer.of(track_pb2.UploadSpec)
    assert track.name == peer.track.name
    assert spec.display_name == "My song.flac"
    assert spec.size_bytes == len(DATA)
    assert len(spec.sha256) == 64
    assert bytes(peer.stored[spec.request_id]) == DATA
    assert seen[0] == (0, len(DATA))
    assert seen[-1] == (len(DATA), len(DATA))


@pytest.mark.parametrize("code", ["UNAVAILABLE", "CANCELLED", "ABORTED", "DATA_LOSS", "OUT_OF_RANGE"])
async def test_goes_on_at_the_committed_offset(peer: Peer, client: Client, song: Path, code: str) -> None:
    peer.upload_faults = [(2 * CHUNK, CHUNK + 77, fault(code)), (3 * CHUNK, 2 * CHUNK + 5, fault(code))]
    await client.upload(song)
    specs = peer.of(track_pb2.UploadSpec)
    assert peer.starts == [0, CHUNK + 77, 2 * CHUNK + 5]
    assert len({spec.request_id for spec in specs}) == 1
    assert bytes(peer.stored[specs[0].request_id]) == DATA


async def test_goes_on_after_the_connection_was_cut(peer: Peer, wire: Wire, song: Path) -> None:
    # No connection lives long enough for the whole: it takes several, each of which goes on where one ended. Of what
    # was sent last before a cut, as much has arrived as the peer had time to read.
    wire.cuts = [("to", CHUNK + 200_000)] * 1000  # the query goes through a connection of its own
    async with Client(wire.address, retry=replace(QUICK, attempts=100)) as client:
        await client.upload(song)
    assert wire.cut >= len(DATA) // CHUNK - 1
    assert peer.starts[-1] > 0
    assert [bytes(each) for each in peer.stored.values()] == [DATA]


async def test_progress_resets_the_count_of_failures(peer: Peer, client: Client, song: Path) -> None:
    peer.upload_faults = [(1, at * CHUNK // 2, fault("UNAVAILABLE")) for at in range(1, 8)]
    await client.upload(song)
    assert len(peer.starts) == 8


async def test_gives_up_without_progress(peer: Peer, client: Client, song: Path) -> None:
    peer.upload_faults = [(1, 0, fault("UNAVAILABLE", "DRAINING"))] * 9
    with pytest.raises(Unavailable) as caught:
        await client.upload(song)
    assert caught.value.reason == "DRAINING"
    assert len(peer.starts) == QUICK.attempts


async def test_a_refusal_is_not_repeated(peer: Peer, client: Client, song: Path) -> None:
    peer.upload_faults = [(1, 0, fault("INVALID_ARGUMENT", "NOT_AUDIO", spec="is a picture"))]
    with pytest.raises(InvalidArgument) as caught:
        await client.upload(song)
    assert caught.value.reason == "NOT_AUDIO"
    assert caught.value.field_violations[0].field == "spec"
    assert len(peer.starts) == 1


async def test_takes_an_answer_before_the_end(peer: Peer, client: Client) -> None:
    peer.answer_at_once = True
    track = await client.upload(os.urandom(8 << 20), display_name="known")
    assert track.name == peer.track.name


async def test_goes_on_with_an_upload_of_another_process(peer: Peer, client: Client, song: Path) -> None:
    request_id = str(uuid.uuid4())
    peer.stored[request_id] = bytearray(DATA[:1000])
    await client.upload(song, request_id=request_id)
    assert peer.starts == [1000]
    assert bytes(peer.stored[request_id]) == DATA


async def test_a_pipe_is_sent_without_size_and_not_resumed(peer: Peer, client: Client) -> None:
    def pipe() -> io.BufferedReader:
        reading, writing = os.pipe()
        os.write(writing, b"x" * 5000)
        os.close(writing)
        return os.fdopen(reading, "rb")

    await client.upload(pipe(), display_name="a/b\\pipe")
    (spec,) = peer.of(track_pb2.UploadSpec)
    assert (spec.size_bytes, spec.sha256, spec.display_name) == (0, "", "pipe")
    peer.upload_faults = [(1, 0, fault("UNAVAILABLE"))]
    with pytest.raises(Unavailable):
        await client.upload(pipe(), display_name="pipe")


async def test_bytes_need_a_name(client: Client) -> None:
    with pytest.raises(ValueError, match="display_name"):
        await client.upload(b"x")


async def test_an_upload_given_up_is_removed(peer: Peer, client: Client, song: Path) -> None:
    async def hang(_context: object) -> None:
        started.set()
        await asyncio.sleep(60)

    started = asyncio.Event()
    peer.upload_faults = [(CHUNK, CHUNK, hang)]
    task = asyncio.create_task(client.upload(song))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(peer.of(track_pb2.CancelUploadRequest)) == 1


async def test_closing_the_client_ends_an_upload(peer: Peer, client: Client, song: Path) -> None:
    async def hang(_context: object) -> None:
        started.set()
        await asyncio.sleep(60)

    started = asyncio.Event()
    peer.upload_faults = [(CHUNK, CHUNK, hang)]
    task = asyncio.create_task(client.upload(song))
    await started.wait()
    await client.close()
    with pytest.raises(Unavailable, match="CLIENT_CLOSED"):
        await task
    assert len(peer.starts) == 1
    with pytest.raises(Unavailable, match="CLIENT_CLOSED"):
        await client.upload(song)


async def test_a_file_that_cannot_be_read_is_the_error(peer: Peer, client: Client) -> None:
    class Failing(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.reads += 1
            if self.reads > 5:
                raise OSError(5, "the disk is broken")
            return super().read(size)

    with pytest.raises(OSError, match="the disk is broken"):
        await client.upload(Failing(DATA), display_name="x")
    assert len(peer.of(track_pb2.CancelUploadRequest)) == 1
