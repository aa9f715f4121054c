"""Look-up, listing and deletion of tracks, and that nobody sees what belongs to another."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import grpc
import pytest
from contrafact import Client, FailedPrecondition, InvalidArgument, JobCancelled, NotFound
from contrafact.v1 import (
    analysis_pb2,
    analysis_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
    stem_pb2,
    stem_pb2_grpc,
    track_pb2,
    track_pb2_grpc,
)
from google.protobuf.field_mask_pb2 import FieldMask

from servers.local import Stack
from servers.platform.settings import Settings
from servers.storage.objects import ObjectStore
from tests.orchestrator.test_hostile_uploads import Residue
from tests.orchestrator.test_uploads import recording

Code = grpc.StatusCode


@dataclass(frozen=True)
class Stubs:
    """All services, raw."""

    tracks: track_pb2_grpc.TrackServiceAsyncStub
    stems: stem_pb2_grpc.StemServiceAsyncStub
    jobs: job_pb2_grpc.JobServiceAsyncStub
    analyses: analysis_pb2_grpc.AnalysisServiceAsyncStub
    searches: search_pb2_grpc.SearchServiceAsyncStub


@pytest.fixture
async def stubs(stack: Stack) -> AsyncIterator[Stubs]:
    """Raw services of the stack."""
    async with grpc.aio.insecure_channel(stack.api_address) as channel:
        yield Stubs(
            track_pb2_grpc.TrackServiceStub(channel),
            stem_pb2_grpc.StemServiceStub(channel),
            job_pb2_grpc.JobServiceStub(channel),
            analysis_pb2_grpc.AnalysisServiceStub(channel),
            search_pb2_grpc.SearchServiceStub(channel),
        )


@pytest.fixture(scope="module")
async def database(settings: Settings) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection of our own to PostgreSQL."""
    connection = await asyncpg.connect(settings.database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def residue(settings: Settings) -> AsyncIterator[Residue]:
    """Eyes on the stores."""
    async with Residue.open(settings) as made:
        yield made


@pytest.fixture(scope="module")
async def shelf(stack: Stack) -> AsyncIterator[list[track_pb2.Track]]:
    """Five tracks, newest first, whose names share a mark that no other track has."""
    async with Client(stack.api_address) as client:
        tracks = [await client.upload(recording(), display_name=f"Shelf-Ärger 100%_{n}.wav") for n in range(5)]
        yield tracks[::-1]
        for track in tracks:
            await client.delete_track(track.name)


# Get and list.


async def test_get(client: Client, shelf: list[track_pb2.Track]) -> None:
    assert [await client.track(track.name) for track in shelf] == shelf


@pytest.mark.parametrize("name", [f"tracks/{uuid.UUID(int=7)}", "tracks/" + "-" * 36, "tracks/" + "a" * 36])
async def test_what_does_not_exist_is_not_found(client: Client, name: str) -> None:
    with pytest.raises(NotFound) as refusal:
        await client.track(name)
    assert refusal.value.reason == "TRACK_NOT_FOUND"


async def test_list_is_newest_first(client: Client, shelf: list[track_pb2.Track]) -> None:
    names = [track.name async for track in client.tracks()]
    assert names[:5] == [track.name for track in shelf]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("page_size", [1, 2, 4, 5, 6, 1000])
async def test_pages_are_complete_and_disjoint(stubs: Stubs, shelf: list[track_pb2.Track], page_size: int) -> None:
    request = track_pb2.ListTracksRequest(page_size=page_size, display_name_contains="Shelf-")
    pages = []
    while True:
        page = await stubs.tracks.ListTracks(request)
        pages.append(list(page.tracks))
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert [track for page in pages for track in page] == shelf
    assert all(len(page) == page_size for page in pages[:-1])
    assert 0 < len(pages[-1]) <= page_size


async def test_pages_survive_deletion_of_their_edge(client: Client, stubs: Stubs) -> None:
    tracks = [await client.upload(recording(), display_name=f"edge {n}") for n in range(3)]
    request = track_pb2.ListTracksRequest(page_size=1, display_name_contains="edge ")
    first = await stubs.tracks.ListTracks(request)
    assert first.tracks[0] == tracks[2]
    await client.delete_track(tracks[2].name)
    request.page_token = first.next_page_token
    assert (await stubs.tracks.ListTracks(request)).tracks[0] == tracks[1]
    for track in tracks[:2]:
        await client.delete_track(track.name)


def token(*position: str) -> str:
    """A page token of anybody's making."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode()


SOME_ID = str(uuid.uuid4())
GARBAGE = [
    "x",
    "ünicode",
    "////",
    base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    base64.urlsafe_b64encode(b"[" * 380).decode(),
    base64.urlsafe_b64encode(b"17").decode(),
    base64.urlsafe_b64encode(b'["2026-01-01T00:00:00+00:00", 5]').decode(),
    token("2026-01-01T00:00:00+00:00"),
    token("never", SOME_ID),
    token("2026-01-01T00:00:00+00:00", "no id"),
    token("2026-01-01T00:00:00", SOME_ID),  # of no time zone
    token("0001-01-01T00:00:00+14:00", SOME_ID),  # before the first year
    token("9999-12-31T23:59:59-14:00", SOME_ID),
    token("2026-01-01T00:00:00+00:00\0", SOME_ID),
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
async def test_garbage_for_a_page_token(stubs: Stubs, garbage: str) -> None:
    for call in (
        stubs.tracks.ListTracks(track_pb2.ListTracksRequest(page_token=garbage)),
        stubs.jobs.ListJobs(job_pb2.ListJobsRequest(page_token=garbage)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call
        assert (refusal.value.code(), refusal.value.details()) == (
            Code.INVALID_ARGUMENT,
            "page_token is not one that this service gave",
        )


@pytest.mark.parametrize("garbage", [token("a", "b"), token("a\0", "b", "c"), token("\ud800", "b", "c")])
async def test_garbage_for_a_page_token_of_stems(stubs: Stubs, shelf: list[track_pb2.Track], garbage: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await stubs.stems.ListStems(stem_pb2.ListStemsRequest(parent=shelf[0].name, page_token=garbage))
    assert refusal.value.code() is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Shelf-", 5),
        ("sHELF-äRGER", 5),
        ("A\u0308rger", 5),  # as some systems write file names
        ("100%_3", 1),
        ("100%_", 5),
        ("Shelf%", 0),  # no pattern
        ("Shelf_", 0),
        ("Shelf'; --", 0),
        ("Shelf\\", 0),
        ("Shelf\0", 0),
        ("x" * 255, 0),
    ],
)
async def test_filter_by_name(client: Client, shelf: list[track_pb2.Track], text: str, found: int) -> None:
    names = [track.name async for track in client.tracks(display_name_contains=text)]
    assert len(names) == found
    assert set(names) <= {track.name for track in shelf}


async def test_page_sizes_have_bounds(client: Client, shelf: list[track_pb2.Track]) -> None:
    assert len([track async for track in client.tracks(page_size=0, display_name_contains="Shelf-")]) == 5
    for page_size in (-1, 1001):
        with pytest.raises(InvalidArgument) as refusal:
            await anext(client.tracks(page_size=page_size))
        assert refusal.value.field_violations[0].field == "page_size"


# Delete.


async def test_delete_leaves_nothing(client: Client, residue: Residue, settings: Settings) -> None:
    before = await residue.look()
    track = await client.upload(recording(60_000), display_name="gone.wav")
    job = await client.separate(track, stems=["vocals"], format="opus")
    artifact = (await job.wait()).artifacts[0]
    await client.delete_track(track.name)
    assert await residue.appears(before) == set()
    objects = ObjectStore(settings)
    try:
        assert await objects.find(f"stems/{track.sha256}/") == []
    finally:
        await objects.close()
    for call in (
        client.track(track.name),
        client.delete_track(track.name),
        client.stem(artifact.name),
        client.separate(track),
    ):
        with pytest.raises(NotFound):
            await call
    assert track.name not in [each.name async for each in client.tracks()]
    await client.job(job.name)  # the job is history, and stays


async def test_delete_while_a_job_runs(slow_client: Client) -> None:
    track = await slow_client.upload(recording(6_000_000), display_name="busy.wav")
    job = await slow_client.separate(track)
    async for event in job.watch():
        if event.HasField("piece"):
            break
    with pytest.raises(FailedPrecondition) as refusal:
        await slow_client.delete_track(track.name)
    assert refusal.value.reason == "TRACK_IN_USE"
    assert (await slow_client.track(track.name)) == track
    await slow_client.delete_track(track.name, cancel_jobs=True)
    with pytest.raises(NotFound):
        await slow_client.track(track.name)
    with pytest.raises(JobCancelled):
        await job.wait()


async def test_delete_and_upload_the_same_bytes_at_once(client: Client) -> None:
    """Whoever comes second, a track that is listed has its bytes."""
    data = recording()
    for _ in range(5):
        track = await client.upload(data, display_name="contested.wav")
        uploaded, _ = await asyncio.gather(
            client.upload(data, display_name="contested.wav"), client.delete_track(track.name)
        )
        if uploaded.name != track.name:
            async for part in _bytes(client.address, uploaded.name):
                assert part == data
            await client.delete_track(uploaded.name)


async def _bytes(address: str, name: str) -> AsyncIterator[bytes]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = track_pb2_grpc.TrackServiceStub(channel)
        async for response in stub.DownloadTrack(track_pb2.DownloadTrackRequest(name=name)):
            yield response.chunk.data


# Another owner.


@dataclass(frozen=True)
class Stranger:
    """What belongs to somebody else: names as the API writes them."""

    track: str
    upload: str
    job: str
    stem: str


@pytest.fixture(scope="module")
async def other(
    stack: Stack, database: asyncpg.Connection[asyncpg.Record], settings: Settings
) -> AsyncIterator[Stranger]:
    """Rows and an object of another owner: a recording of theirs alone, an open upload, a finished job, a stem."""
    track, upload, job, request = (uuid.uuid4() for _ in range(4))
    sha256, owner = "ab" * 32, "somebody else"
    objects = ObjectStore(settings)
    key = f"tracks/{sha256}/source.wav"
    await objects.put(key, recording())
    await database.execute(
        "INSERT INTO recordings VALUES ($1, 8044, $2, 'wav', 'pcm_s16le', 44100, 1, 4000, 16, 0, 0.1, 0.1)", sha256, key
    )
    await database.execute("INSERT INTO tracks VALUES ($1, $2, 'private.wav', $3)", track, owner, sha256)
    await database.execute(
        """INSERT INTO uploads (id, owner, request_id, display_name, size_bytes, sha256, committed_bytes)
           VALUES ($1, $2, $3, 'private too.wav', 10, '', 5)""",
        upload,
        owner,
        request,
    )
    await database.execute(
        """INSERT INTO stems VALUES ($1, 'htdemucs-1', 'vocals', 'flac', $2, 8044, $1, 44100, 1, 4000, 0.1, 0)""",
        sha256,
        key,
    )
    spec = json.dumps({"track": f"tracks/{track}", "stems": ["STEM_KIND_VOCALS"]})
    await database.execute(
        """INSERT INTO jobs (id, owner, request_id, kind, priority, state, track_id, spec)
           VALUES ($1, $2, $3, 'SEPARATE', 'BACKGROUND', 'SUCCEEDED', $4, $5)""",
        job,
        owner,
        request,
        track,
        spec,
    )
    yield Stranger(f"tracks/{track}", str(request), f"jobs/{job}", f"tracks/{track}/stems/htdemucs-1.vocals.flac")
    # Nothing of it was touched.
    for table, row in (("tracks", track), ("uploads", upload), ("jobs", job)):
        assert await database.fetchval(f"SELECT owner FROM {table} WHERE id = $1", row) == owner
        await database.execute(f"DELETE FROM {table} WHERE id = $1", row)
    await database.execute("DELETE FROM recordings WHERE sha256 = $1", sha256)
    assert await objects.size(key) >= 0
    await objects.delete([key])
    await objects.close()


async def everything(stream: Any) -> None:
    """Read a stream to its end."""
    async for _ in stream:
        pass


async def _scan_of(track: str) -> AsyncIterator[analysis_pb2.ScanLibraryRequest]:
    yield analysis_pb2.ScanLibraryRequest(spec=analysis_pb2.ScanSpec(request_id=str(uuid.uuid4())))
    yield analysis_pb2.ScanLibraryRequest(tracks=analysis_pb2.ScanTracks(tracks=[track]))


HIDDEN: dict[str, Callable[[Stubs, Stranger], Awaitable[Any]]] = {
    "GetTrack": lambda s, o: s.tracks.GetTrack(track_pb2.GetTrackRequest(name=o.track)),
    "UpdateTrack": lambda s, o: s.tracks.UpdateTrack(
        track_pb2.UpdateTrackRequest(track=track_pb2.Track(name=o.track), update_mask=FieldMask(paths=["tags"]))
    ),
    "DeleteTrack": lambda s, o: s.tracks.DeleteTrack(track_pb2.DeleteTrackRequest(name=o.track, cancel_jobs=True)),
    "DownloadTrack": lambda s, o: everything(s.tracks.DownloadTrack(track_pb2.DownloadTrackRequest(name=o.track))),
    "CreateDownloadUrl": lambda s, o: s.tracks.CreateDownloadUrl(track_pb2.CreateDownloadUrlRequest(name=o.track)),
    "CreateDownloadUrl of a stem": lambda s, o: s.tracks.CreateDownloadUrl(
        track_pb2.CreateDownloadUrlRequest(name=o.stem)
    ),
    "QueryUpload": lambda s, o: s.tracks.QueryUpload(track_pb2.QueryUploadRequest(request_id=o.upload)),
    "CancelUpload": lambda s, o: s.tracks.CancelUpload(track_pb2.CancelUploadRequest(request_id=o.upload)),
    "CompleteUpload": lambda s, o: s.tracks.CompleteUpload(track_pb2.CompleteUploadRequest(request_id=o.upload)),
    "CreateSeparation": lambda s, o: s.stems.CreateSeparation(
        stem_pb2.CreateSeparationRequest(request_id=str(uuid.uuid4()), spec=job_pb2.SeparationSpec(track=o.track))
    ),
    "GetStem": lambda s, o: s.stems.GetStem(stem_pb2.GetStemRequest(name=o.stem)),
    "ListStems": lambda s, o: s.stems.ListStems(stem_pb2.ListStemsRequest(parent=o.track)),
    "DownloadStem": lambda s, o: everything(s.stems.DownloadStem(stem_pb2.DownloadStemRequest(name=o.stem))),
    "StreamStems": lambda s, o: everything(s.stems.StreamStems(stem_pb2.StreamStemsRequest(job=o.job))),
    "GetJob": lambda s, o: s.jobs.GetJob(job_pb2.GetJobRequest(name=o.job)),
    "CancelJob": lambda s, o: s.jobs.CancelJob(job_pb2.CancelJobRequest(name=o.job)),
    "WatchJob": lambda s, o: everything(s.jobs.WatchJob(job_pb2.WatchJobRequest(name=o.job))),
    "GetAnalysis": lambda s, o: s.analyses.GetAnalysis(analysis_pb2.GetAnalysisRequest(track=o.track)),
    "WatchAnalysis": lambda s, o: everything(
        s.analyses.WatchAnalysis(analysis_pb2.WatchAnalysisRequest(track=o.track))
    ),
    "GetWaveform": lambda s, o: s.analyses.GetWaveform(analysis_pb2.GetWaveformRequest(track=o.track)),
    "GetAlbumLoudness": lambda s, o: s.analyses.GetAlbumLoudness(
        analysis_pb2.GetAlbumLoudnessRequest(tracks=[o.track])
    ),
    "ScanLibrary": lambda s, o: everything(s.analyses.ScanLibrary(_scan_of(o.track))),
    "SearchTracks": lambda s, o: s.searches.SearchTracks(
        search_pb2.SearchTracksRequest(query=search_pb2.TrackQuery(examples=[search_pb2.Example(track=o.track)]))
    ),
    "StreamRadio": lambda s, o: everything(
        s.searches.StreamRadio(
            search_pb2.StreamRadioRequest(query=search_pb2.TrackQuery(examples=[search_pb2.Example(track=o.track)]))
        )
    ),
    "OrderTracks": lambda s, o: s.searches.OrderTracks(search_pb2.OrderTracksRequest(tracks=[o.track])),
}


@pytest.mark.parametrize("method", HIDDEN)
async def test_what_belongs_to_another_does_not_exist(stubs: Stubs, other: Stranger, method: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await HIDDEN[method](stubs, other)
    assert refusal.value.code() is Code.NOT_FOUND


async def test_lists_have_nothing_of_another(stubs: Stubs, other: Stranger) -> None:
    tracks = await stubs.tracks.ListTracks(track_pb2.ListTracksRequest(page_size=1000))
    assert other.track not in [track.name for track in tracks.tracks]
    assert not (await stubs.tracks.ListTracks(track_pb2.ListTracksRequest(display_name_contains="private"))).tracks
    jobs = await stubs.jobs.ListJobs(job_pb2.ListJobsRequest(page_size=1000))
    assert other.job not in [job.name for job in jobs.jobs]
    assert not (await stubs.jobs.ListJobs(job_pb2.ListJobsRequest(track=other.track))).jobs


def test_every_method_that_takes_a_name_was_tried() -> None:
    """A method added later belongs in the table, or in this list of those that name nothing of anybody's."""
    harmless = {"UploadTrack", "CreateUploadUrl", "ListTracks", "ListJobs", "ListScans", "ListPlaylists", "EmbedClip"}
    # Of scans and playlists, which have tests of their own.
    elsewhere = {"GetScan", "WatchScan", "CancelScan", "ListScanItems", "CreatePlaylist", "GetPlaylist"}
    elsewhere |= {"UpdatePlaylist", "DeletePlaylist", "ListPlaylistTracks"}
    names = {track_pb2: "Track", stem_pb2: "Stem", job_pb2: "Job", analysis_pb2: "Analysis", search_pb2: "Search"}
    services = [module.DESCRIPTOR.services_by_name[f"{name}Service"] for module, name in names.items()]
    methods = {method.name for service in services for method in service.methods}
    assert methods - harmless - elsewhere == {name.split(" ")[0] for name in HIDDEN}


async def test_knowing_the_digest_of_anothers_bytes_gives_nothing(stubs: Stubs, other: Stranger) -> None:
    spec = track_pb2.UploadSpec(request_id=str(uuid.uuid4()), display_name="x", size_bytes=8044, sha256="ab" * 32)
    await stubs.tracks.CreateUploadUrl(track_pb2.CreateUploadUrlRequest(spec=spec))
    query = await stubs.tracks.QueryUpload(track_pb2.QueryUploadRequest(request_id=spec.request_id))
    assert not query.HasField("track")
    await stubs.tracks.CancelUpload(track_pb2.CancelUploadRequest(request_id=spec.request_id))


async def test_an_upload_id_of_another_is_free_for_us(stubs: Stubs, other: Stranger) -> None:
    spec = track_pb2.UploadSpec(request_id=other.upload, display_name="mine.wav", size_bytes=77)
    await stubs.tracks.CreateUploadUrl(track_pb2.CreateUploadUrlRequest(spec=spec))
    query = await stubs.tracks.QueryUpload(track_pb2.QueryUploadRequest(request_id=other.upload))
    assert query.committed_bytes == 0
    await stubs.tracks.CancelUpload(track_pb2.CancelUploadRequest(request_id=other.upload))
