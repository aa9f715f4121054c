"""Uploads and downloads that go right, also when something breaks on the way."""

from __future__ import annotations

import asyncio
import hashlib
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import google_crc32c
import grpc
import numpy as np
import psutil
import pytest
from contrafact import Client
from contrafact.v1 import track_pb2, track_pb2_grpc

from servers.local import Stack
from servers.platform.settings import Settings
from tests.media.media_builders import wav_bytes
from tests.orchestrator.test_hostile_uploads import (
    MIB,
    Outcome,
    Residue,
    Stranger,
    chunks,
    end,
    whole,
)

Code = grpc.StatusCode


def recording(frames: int = 4000) -> bytes:
    """A WAV that nobody has uploaded before."""
    samples = np.random.default_rng(uuid.uuid4().int % 2**32).integers(-3000, 3000, frames, dtype=np.int16)
    return wav_bytes(samples.tobytes())


def digest(data: bytes) -> str:
    """SHA-256 as the API writes it."""
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
async def tracks(stack: Stack) -> AsyncIterator[track_pb2_grpc.TrackServiceAsyncStub]:
    """The raw service."""
    async with grpc.aio.insecure_channel(stack.api_address) as channel:
        yield track_pb2_grpc.TrackServiceStub(channel)


@pytest.fixture
async def stranger(stack: Stack, tmp_path: Path) -> AsyncIterator[Stranger]:
    """A raw uploader."""
    made = Stranger(stack.api_address, tmp_path)
    yield made
    await asyncio.to_thread(made.close)


@pytest.fixture
async def residue(settings: Settings) -> AsyncIterator[Residue]:
    """Eyes on the stores."""
    async with Residue.open(settings) as made:
        yield made


def stored(outcome: Outcome) -> track_pb2.Track:
    """The track of an upload that was accepted."""
    assert outcome.response is not None, outcome
    return outcome.response.track


# Again, and on.


async def test_resume_after_a_break_through_another_connection(
    stack: Stack, stranger: Stranger, tmp_path: Path, client: Client
) -> None:
    data = recording(6_000_000)  # more than one stored piece
    spec = stranger.spec(size=len(data), sha256=digest(data))
    cut = 9 * MIB
    broken = await stranger.send(spec, chunks(data[:cut]), stranger.then_silence(), seconds=4.0)
    assert broken.code is Code.DEADLINE_EXCEEDED
    other = Stranger(stack.api_address, tmp_path)
    other.request_id = stranger.request_id
    for _ in range(400):
        if await other.committed() == cut:
            break
        await asyncio.sleep(0.1)
    assert await other.committed() == cut
    track = stored(await other.send(spec, whole(data, start=cut)))
    assert (track.sha256, track.size_bytes, track.audio.frames) == (digest(data), len(data), 6_000_000)
    await asyncio.to_thread(other.close)
    assert (await client.download(track, tmp_path / "back")).read_bytes() == data


async def test_a_repeated_request_returns_the_track(stranger: Stranger, residue: Residue, client: Client) -> None:
    data = recording()
    first = await stranger.send(stranger.spec(), whole(data))
    before = await residue.look()
    again = await stranger.send(stranger.spec(), whole(data))
    without_bytes = await stranger.send(stranger.spec())
    assert stored(first) == stored(again) == stored(without_bytes)
    for outcome, existed in ((first, False), (again, True), (without_bytes, True)):
        assert outcome.response is not None
        assert outcome.response.already_existed is existed
    query = await asyncio.to_thread(
        stranger.stub.QueryUpload, track_pb2.QueryUploadRequest(request_id=stranger.request_id)
    )
    assert query.track == stored(first)
    assert await residue.look() == before


async def test_a_request_repeated_after_deletion_begins_anew(stranger: Stranger, client: Client) -> None:
    data = recording()
    first = stored(await stranger.send(stranger.spec(), whole(data)))
    await client.delete_track(first.name)
    with pytest.raises(grpc.RpcError):
        await stranger.committed()
    second = stored(await stranger.send(stranger.spec(), whole(data)))
    assert second.name != first.name
    assert second.sha256 == first.sha256


async def test_the_same_bytes_are_one_track(client: Client, stranger: Stranger, residue: Residue) -> None:
    data = recording()
    first = await client.upload(data, display_name="first.wav")
    before = await residue.look()
    again = await stranger.send(stranger.spec(name="second.wav"), whole(data))
    assert stored(again) == first  # the name too
    assert again.response is not None
    assert again.response.already_existed
    new = await residue.look() - before
    assert {name for name in new if not name.startswith("upload ")} == set()  # no track, recording, object or file
    await client.delete_track(first.name)
    assert not await residue.look() & new  # the uploads go with it


async def test_bytes_that_are_known_need_not_be_sent(client: Client, stranger: Stranger) -> None:
    data = recording()
    first = await client.upload(data, display_name="known.wav")
    outcome = await stranger.send(stranger.spec(sha256=digest(data), size=len(data)))
    assert stored(outcome) == first
    assert outcome.response is not None
    assert outcome.response.already_existed


async def test_completion_asked_for_twice_at_once(stack: Stack, tmp_path: Path, client: Client) -> None:
    """As a client does whose first call was lost on the way back. Both get the same track, whoever is faster."""
    for _ in range(4):
        data = recording()
        pair = [Stranger(stack.api_address, tmp_path) for _ in range(2)]
        pair[1].request_id = pair[0].request_id
        await pair[0].send(pair[0].spec(), chunks(data))  # all of it, but no end
        outcomes = await asyncio.gather(*(each.send(each.spec(), [end(len(data))]) for each in pair))
        assert stored(outcomes[0]) == stored(outcomes[1])
        assert (await client.track(stored(outcomes[0]).name)).sha256 == digest(data)
        for each in pair:
            await asyncio.to_thread(each.close)


async def test_parallel_uploads(client: Client, residue: Residue) -> None:
    """Twenty at once, each recording twice."""
    recordings = [recording(3000 + number) for number in range(10)] * 2
    before = await residue.look()
    tracks = await asyncio.gather(
        *(client.upload(data, display_name=f"{number}.wav") for number, data in enumerate(recordings))
    )
    assert [track.sha256 for track in tracks] == [digest(data) for data in recordings]
    assert [track.name for track in tracks[:10]] == [track.name for track in tracks[10:]]
    assert len({track.name for track in tracks}) == 10
    for track in tracks[:10]:
        await client.delete_track(track.name)
    assert await residue.appears(before) == set()


async def test_memory_stays_bounded(stack: Stack, client: Client) -> None:
    data = recording(14_600_000)  # 29.2 MB
    process = psutil.Process(stack.processes["api"].pid)
    await client.upload(recording(), display_name="warm.wav")
    before = process.memory_info().rss
    peak, done = before, asyncio.Event()

    async def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    track = await client.upload(data, display_name="long.wav")
    done.set()
    await watching
    await client.delete_track(track.name)
    assert (peak - before) / 1e6 < 60


# By URL.


def put(url: str, data: bytes) -> None:
    """HTTP PUT."""
    with urllib.request.urlopen(urllib.request.Request(url, data=data, method="PUT"), timeout=100) as answer:
        assert answer.status == 200


async def test_upload_by_url(tracks: track_pb2_grpc.TrackServiceAsyncStub, residue: Residue) -> None:
    data, before = recording(), await residue.look()
    spec = track_pb2.UploadSpec(request_id=str(uuid.uuid4()), display_name="by url.wav", size_bytes=len(data))
    opened = await tracks.CreateUploadUrl(track_pb2.CreateUploadUrlRequest(spec=spec))
    complete = track_pb2.CompleteUploadRequest(request_id=spec.request_id)
    with pytest.raises(grpc.aio.AioRpcError, match="nothing has been put") as early:
        await tracks.CompleteUpload(complete)
    assert early.value.code() is Code.FAILED_PRECONDITION
    await asyncio.to_thread(put, opened.url, data)
    response = await tracks.CompleteUpload(complete)
    assert not response.already_existed
    assert (response.track.display_name, response.track.sha256) == ("by url.wav", digest(data))
    again = await tracks.CompleteUpload(complete)
    assert again.already_existed
    assert again.track == response.track
    await tracks.DeleteTrack(track_pb2.DeleteTrackRequest(name=response.track.name))
    assert await residue.appears(before) == set()


@pytest.mark.parametrize(("change", "reason"), [(b"", "SIZE_MISMATCH"), (b"xx", "SIZE_MISMATCH")])
async def test_upload_by_url_of_another_size(
    tracks: track_pb2_grpc.TrackServiceAsyncStub, residue: Residue, change: bytes, reason: str
) -> None:
    data, before = recording(), await residue.look()
    spec = track_pb2.UploadSpec(request_id=str(uuid.uuid4()), display_name="x", size_bytes=len(data) + 1)
    opened = await tracks.CreateUploadUrl(track_pb2.CreateUploadUrlRequest(spec=spec))
    await asyncio.to_thread(put, opened.url, data + change)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await tracks.CompleteUpload(track_pb2.CompleteUploadRequest(request_id=spec.request_id))
    assert (refusal.value.code(), reason in str(refusal.value.trailing_metadata())) == (Code.INVALID_ARGUMENT, True)
    assert await residue.appears(before) == set()


async def test_upload_by_url_of_what_is_no_audio(
    tracks: track_pb2_grpc.TrackServiceAsyncStub, residue: Residue
) -> None:
    before = await residue.look()
    spec = track_pb2.UploadSpec(request_id=str(uuid.uuid4()), display_name="x", size_bytes=500)
    opened = await tracks.CreateUploadUrl(track_pb2.CreateUploadUrlRequest(spec=spec))
    await asyncio.to_thread(put, opened.url, bytes(500))
    with pytest.raises(grpc.aio.AioRpcError, match="not audio") as refusal:
        await tracks.CompleteUpload(track_pb2.CompleteUploadRequest(request_id=spec.request_id))
    assert refusal.value.code() is Code.INVALID_ARGUMENT
    assert await residue.appears(before) == set()


async def test_a_stream_that_has_begun_is_not_completed_by_url(
    stranger: Stranger, tracks: track_pb2_grpc.TrackServiceAsyncStub
) -> None:
    """And, above all, not removed by the attempt."""
    data = recording()
    spec = stranger.spec(size=len(data))
    await stranger.send(spec, chunks(data[:5000]))
    assert await stranger.committed() == 5000
    for call in (
        tracks.CreateUploadUrl(track_pb2.CreateUploadUrlRequest(spec=spec.spec)),
        tracks.CompleteUpload(track_pb2.CompleteUploadRequest(request_id=stranger.request_id)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call
        assert refusal.value.code() is Code.FAILED_PRECONDITION
    assert stored(await stranger.send(spec, whole(data, start=5000))).sha256 == digest(data)


# Back.


@pytest.fixture(scope="module")
def data() -> bytes:
    """A recording of more than one message."""
    return recording(1_500_000)


@pytest.fixture
async def track(client: Client, data: bytes) -> track_pb2.Track:
    """It, uploaded."""
    return await client.upload(data, display_name="download me.wav")


@pytest.mark.parametrize("share", [0.0, 0.000001, 0.5, 1.0])
async def test_download_from_any_byte(
    tracks: track_pb2_grpc.TrackServiceAsyncStub, track: track_pb2.Track, data: bytes, share: float
) -> None:
    offset = int(len(data) * share)
    received = bytearray()
    async for response in tracks.DownloadTrack(track_pb2.DownloadTrackRequest(name=track.name, offset=offset)):
        assert response.chunk.offset == offset + len(received)
        assert response.chunk.HasField("crc32c")
        assert response.chunk.crc32c == google_crc32c.value(response.chunk.data)
        assert 0 < len(response.chunk.data) <= 2 * MIB
        received += response.chunk.data
    assert received == data[offset:]


async def test_download_from_beyond_the_end(
    tracks: track_pb2_grpc.TrackServiceAsyncStub, track: track_pb2.Track
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        async for _ in tracks.DownloadTrack(
            track_pb2.DownloadTrackRequest(name=track.name, offset=track.size_bytes + 1)
        ):
            pass
    assert refusal.value.code() is Code.OUT_OF_RANGE


async def test_download_by_url(
    tracks: track_pb2_grpc.TrackServiceAsyncStub, track: track_pb2.Track, data: bytes
) -> None:
    url = (await tracks.CreateDownloadUrl(track_pb2.CreateDownloadUrlRequest(name=track.name))).url

    def get(**headers: str) -> bytes:
        # The status is not looked at: the embedded store sends ranges with 200 instead of 206.
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=100) as answer:
            received: bytes = answer.read()
            return received

    assert await asyncio.to_thread(get) == data
    assert await asyncio.to_thread(lambda: get(Range="bytes=1000-1999")) == data[1000:2000]
    assert await asyncio.to_thread(lambda: get(Range=f"bytes={len(data) - 7}-")) == data[-7:]


async def test_urls_are_for_one_thing_and_a_while(
    tracks: track_pb2_grpc.TrackServiceAsyncStub, track: track_pb2.Track
) -> None:
    request = track_pb2.CreateDownloadUrlRequest(name=track.name)
    request.ttl.seconds = 5
    url = (await tracks.CreateDownloadUrl(request)).url

    def refused(method: str, address: str) -> int:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, method=method, data=None), timeout=100):
                return 200
        except urllib.error.HTTPError as error:
            return error.code

    assert await asyncio.to_thread(refused, "GET", url) == 200
    assert await asyncio.to_thread(refused, "DELETE", url) == 403
    assert await asyncio.to_thread(refused, "GET", url.replace(track.sha256, "0" * 64)) == 403
    async with asyncio.timeout(60):
        while (code := await asyncio.to_thread(refused, "GET", url)) == 200:
            await asyncio.sleep(0.5)
    assert code in (400, 403)  # the embedded store says 400
