"""Tags and marks of tracks, and stems that are kept ready, removed when idle and made again on demand."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from contrafact import Client
from contrafact._errors import from_rpc
from contrafact.v1 import job_pb2, stem_pb2, stem_pb2_grpc, track_pb2, track_pb2_grpc
from google.protobuf.field_mask_pb2 import FieldMask

from servers.local import Stack
from servers.orchestrator.jobs.findings import Stores
from servers.orchestrator.jobs.retention import idle_stems
from servers.platform.settings import Settings
from servers.storage.database import connect
from servers.storage.objects import ObjectStore
from tests.orchestrator.test_separation import noise, write


@pytest.fixture
async def tracks(stack: Stack) -> AsyncIterator[track_pb2_grpc.TrackServiceAsyncStub]:
    """TrackService, raw."""
    async with grpc.aio.insecure_channel(stack.api_address) as channel:
        yield track_pb2_grpc.TrackServiceStub(channel)


@pytest.fixture
async def stems(stack: Stack) -> AsyncIterator[stem_pb2_grpc.StemServiceAsyncStub]:
    """StemService, raw."""
    async with grpc.aio.insecure_channel(stack.api_address) as channel:
        yield stem_pb2_grpc.StemServiceStub(channel)


@pytest.fixture
async def track(client: Client, tmp_path: Path) -> track_pb2.Track:
    """A new track of a second."""
    seed = uuid.uuid4().int % 2**32
    return await client.upload(write(tmp_path / "in.wav", noise(44_100, 2, seed=seed), 44_100))


def update(track: track_pb2.Track, *paths: str, **values: Any) -> track_pb2.UpdateTrackRequest:
    """A request to change ``paths`` of a track."""
    return track_pb2.UpdateTrackRequest(
        track=track_pb2.Track(name=track.name, **values), update_mask=FieldMask(paths=paths)
    )


def refusal(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, dict[str, str], str]:
    """Status, metadata and reason of an error."""
    known = from_rpc(error)
    return error.code(), dict(known.metadata), known.reason


async def test_only_what_the_mask_names_is_changed(
    tracks: track_pb2_grpc.TrackServiceAsyncStub, track: track_pb2.Track
) -> None:
    answer = await tracks.UpdateTrack(update(track, "tags", tags=["summer", "b-side"], display_name="ignored"))
    assert sorted(answer.track.tags) == ["b-side", "summer"]
    assert answer.track.display_name == track.display_name
    answer = await tracks.UpdateTrack(update(track, "display_name", display_name="../Another name"))
    assert (answer.track.display_name, sorted(answer.track.tags)) == ("Another name", ["b-side", "summer"])
    assert list(answer.jobs) == []
    tag = uuid.uuid4().hex
    await tracks.UpdateTrack(update(track, "tags", tags=[tag, "summer"]))
    found = await tracks.ListTracks(track_pb2.ListTracksRequest(tags=[tag, "summer"]))
    assert [each.name for each in found.tracks] == [track.name]
    assert not (await tracks.ListTracks(track_pb2.ListTracksRequest(tags=[tag, "winter"]))).tracks


@pytest.mark.parametrize(
    ("paths", "values"),
    [
        ([], {"tags": ["a"]}),
        (["sha256"], {}),
        (["is_separated"], {"is_separated": True}),
        (["display_name"], {}),
        (["display_name"], {"display_name": "n" * 256}),
        (["tags"], {"tags": ["a", "a"]}),
        (["tags"], {"tags": [""]}),
        (["tags"], {"tags": ["nul\0"]}),
        (["tags"], {"tags": [str(number) for number in range(51)]}),
        (["marks"], {"marks": [0]}),
        (["marks"], {"marks": [77]}),
    ],
)
async def test_what_makes_no_sense_is_refused(
    tracks: track_pb2_grpc.TrackServiceAsyncStub, track: track_pb2.Track, paths: list[str], values: dict[str, Any]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tracks.UpdateTrack(update(track, *paths, **values))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await tracks.GetTrack(track_pb2.GetTrackRequest(name=track.name))).track == track


@pytest.mark.parametrize("name", ["", "tracks", "tracks/nothing", f"tracks/{uuid.UUID(int=7)}"])
async def test_an_unknown_track_is_not_found(tracks: track_pb2_grpc.TrackServiceAsyncStub, name: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tracks.UpdateTrack(update(track_pb2.Track(name=name), "tags", tags=["a"]))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_mark_has_its_stems_made_once(
    client: Client, tracks: track_pb2_grpc.TrackServiceAsyncStub, track: track_pb2.Track
) -> None:
    assert not track.is_separated
    request = update(track, "marks", marks=[track_pb2.MARK_KARAOKE])
    first = await tracks.UpdateTrack(request)
    again = await tracks.UpdateTrack(request)
    assert set(again.jobs) <= set(first.jobs)  # the same, unless it has ended meanwhile
    done = await (await client.job(first.jobs[0])).wait()
    assert done.priority == job_pb2.PRIORITY_BACKGROUND
    answer = await tracks.UpdateTrack(request)
    assert answer.track.is_separated
    assert list(answer.jobs) == []
    # Of the other mark, two stems more are needed, and one that is there already.
    answer = await tracks.UpdateTrack(update(track, "marks", marks=[track_pb2.MARK_KARAOKE, track_pb2.MARK_STUDIO]))
    assert not answer.track.is_separated
    job = await (await client.job(answer.jobs[0])).wait()
    assert sorted(artifact.name.split(".")[-2] for artifact in job.artifacts) == ["bass", "drums", "other"]
    assert (await tracks.GetTrack(track_pb2.GetTrackRequest(name=track.name))).track.is_separated


async def test_marks_one_after_the_other_make_no_stem_twice(
    client: Client, tracks: track_pb2_grpc.TrackServiceAsyncStub, track: track_pb2.Track
) -> None:
    both = [track_pb2.MARK_STUDIO, track_pb2.MARK_KARAOKE]
    jobs: set[str] = set()
    for marks in (both[:1], both, both):
        jobs |= set((await tracks.UpdateTrack(update(track, "marks", marks=marks))).jobs)
    stems = [stem for job in jobs for stem in (await (await client.job(job)).wait()).separation.stems]
    assert len(stems) == len(set(stems)) == 5
    assert (await tracks.GetTrack(track_pb2.GetTrackRequest(name=track.name))).track.is_separated


async def test_a_mark_that_cannot_be_kept_is_not_tried_again_and_again(
    stems: stem_pb2_grpc.StemServiceAsyncStub,
    tracks: track_pb2_grpc.TrackServiceAsyncStub,
    settings: Settings,
    track: track_pb2.Track,
) -> None:
    marked = await tracks.UpdateTrack(update(track, "marks", marks=[track_pb2.MARK_KARAOKE]))
    pool = await connect(settings)
    try:
        while await pool.fetchval("SELECT count(*) FROM stems WHERE sha256 = $1", track.sha256) < 2:
            await asyncio.sleep(0.1)
        await pool.execute("DELETE FROM stems WHERE sha256 = $1", track.sha256)
        await pool.execute(
            """UPDATE jobs SET state = 'FAILED', ended_at = now(), error = '{"reason": "CORRUPT", "message": "",
               "retryable": false}' WHERE id = $1""",
            uuid.UUID(marked.jobs[0].removeprefix("jobs/")),
        )
    finally:
        await pool.close()
    name = f"{track.name}/stems/htdemucs-1.vocals.flac"
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stems.GetStem(stem_pb2.GetStemRequest(name=name))
        assert refusal(caught.value)[1]["job"] == marked.jobs[0]


async def test_idle_stems_of_a_mark_are_removed_and_made_again_on_demand(
    client: Client,
    tracks: track_pb2_grpc.TrackServiceAsyncStub,
    stems: stem_pb2_grpc.StemServiceAsyncStub,
    settings: Settings,
    track: track_pb2.Track,
) -> None:
    marked = await tracks.UpdateTrack(update(track, "marks", marks=[track_pb2.MARK_KARAOKE]))
    job = await (await client.job(marked.jobs[0])).wait()
    vocals = next(artifact for artifact in job.artifacts if ".vocals." in artifact.name)
    before = [part.chunk.data async for part in stems.DownloadStem(stem_pb2.DownloadStemRequest(name=vocals.name))]
    pool, objects = await connect(settings), ObjectStore(settings)
    try:
        await _idle(pool, track.sha256)
        await idle_stems(Stores(pool, objects, settings), dry_run=False)
    finally:
        await pool.close()
        await objects.close()
    assert not (await tracks.GetTrack(track_pb2.GetTrackRequest(name=track.name))).track.is_separated
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stems.GetStem(stem_pb2.GetStemRequest(name=vocals.name))
    code, metadata, reason = refusal(caught.value)
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STEM_BEING_MADE")
    making = await (await client.job(metadata["job"])).wait()
    assert making.priority == job_pb2.PRIORITY_INTERACTIVE
    after = [part.chunk.data async for part in stems.DownloadStem(stem_pb2.DownloadStemRequest(name=vocals.name))]
    assert b"".join(after) == b"".join(before)
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # of no mark
        await stems.GetStem(stem_pb2.GetStemRequest(name=vocals.name.replace(".vocals.", ".drums.")))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def _idle(pool: asyncpg.Pool, sha256: str) -> None:
    await pool.execute("UPDATE stems SET used_at = now() - interval '31 days' WHERE sha256 = $1", sha256)
