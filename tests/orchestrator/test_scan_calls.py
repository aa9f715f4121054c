"""Scans through the API, on the whole stack: workers and the analyzer are the real ones."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
from contrafact import Client
from contrafact.v1 import analysis_pb2, analysis_pb2_grpc, job_pb2, job_pb2_grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from servers.local import Stack, running_stack
from servers.platform.settings import Settings
from servers.storage.database import Pool, connect, exclusive
from servers.storage.objects import ObjectStore
from tests.clients.command import contrafact
from tests.conftest import FAKE_MODELS, stack_settings
from tests.orchestrator.test_separation import noise, write

pytestmark = pytest.mark.timeout(240)

Item = analysis_pb2.ScanItem
Stub: TypeAlias = "analysis_pb2_grpc.AnalysisServiceAsyncStub"
OPEN = analysis_pb2.SCAN_STATE_OPEN
DONE, CANCELLED = analysis_pb2.SCAN_STATE_DONE, analysis_pb2.SCAN_STATE_CANCELLED
NOBODY = f"tracks/{uuid.UUID(int=0)}"


@pytest.fixture
async def channel(stack: Stack) -> AsyncIterator[grpc.aio.Channel]:
    """To the API."""
    async with grpc.aio.insecure_channel(stack.api_address) as connected:
        yield connected


@pytest.fixture
def api(channel: grpc.aio.Channel) -> Stub:
    """The raw service."""
    return analysis_pb2_grpc.AnalysisServiceStub(channel)


@pytest.fixture
def jobs(channel: grpc.aio.Channel) -> job_pb2_grpc.JobServiceAsyncStub:
    """Another."""
    return job_pb2_grpc.JobServiceStub(channel)


@pytest.fixture
async def objects(settings: Settings) -> AsyncIterator[ObjectStore]:
    """The object store."""
    store = ObjectStore(settings)
    yield store
    await store.close()


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[Pool]:
    """Connections to PostgreSQL."""
    made = await connect(settings)
    yield made
    await made.close()


@asynccontextmanager
async def unpublished(pool: Pool, client: Client, tracks: list[str]) -> AsyncIterator[None]:
    """No analysis of these is stored: their jobs do not end by themselves."""
    async with AsyncExitStack() as held:
        for track in tracks:
            await held.enter_async_context(exclusive(pool, (await client.track(track)).sha256))
        yield


def opening(request_id: str = "", **source: Any) -> analysis_pb2.ScanLibraryRequest:
    """The first message."""
    return analysis_pb2.ScanLibraryRequest(
        spec=analysis_pb2.ScanSpec(request_id=request_id or str(uuid.uuid4()), **source)
    )


def names(*tracks: str) -> analysis_pb2.ScanLibraryRequest:
    """Names of tracks."""
    return analysis_pb2.ScanLibraryRequest(tracks=analysis_pb2.ScanTracks(tracks=tracks))


END = analysis_pb2.ScanLibraryRequest(end=analysis_pb2.ScanEnd())


async def answers(api: Stub, *requests: analysis_pb2.ScanLibraryRequest) -> list[analysis_pb2.Scan]:
    """All that is answered to a whole stream."""
    return [response.scan async for response in api.ScanLibrary(iter(requests))]


async def read(call: Any) -> analysis_pb2.Scan:
    """The next answer."""
    response = await call.read()
    assert response is not grpc.aio.EOF
    scan: analysis_pb2.Scan = response.scan
    return scan


async def last(call: Any) -> analysis_pb2.Scan:
    """The last answer."""
    scan = None
    while (response := await call.read()) is not grpc.aio.EOF:
        scan = response.scan
    assert scan is not None
    return scan


async def upload(client: Client, folder: Path, *, seconds: float = 1.0) -> str:
    """A track like no other."""
    seed = uuid.uuid4().int % 2**32
    track = await client.upload(write(folder / f"{seed}.wav", noise(int(seconds * 22_050), 1, seed=seed), 22_050))
    return track.name


async def items(api: Stub, scan: analysis_pb2.Scan, **more: Any) -> list[analysis_pb2.ScanItem]:
    """All items of a scan, page by page."""
    found: list[analysis_pb2.ScanItem] = []
    token = ""
    while True:
        request = analysis_pb2.ListScanItemsRequest(parent=scan.name, page_token=token, **more)
        page = await api.ListScanItems(request)
        found += page.items
        token = page.next_page_token
        if not token:
            return found


async def all_begun(api: Stub, scan: analysis_pb2.Scan, tracks: list[str]) -> None:
    """Wait until all of these have jobs."""
    while [item.track for item in await items(api, scan) if item.job] != tracks:
        await asyncio.sleep(0.1)


async def test_streamed_names_are_analysed_once(api: Stub, client: Client, stack: Stack, tmp_path: Path) -> None:
    tracks = [await upload(client, tmp_path) for _ in range(3)]
    first = opening()
    told = await answers(api, first, names(*tracks[:2]), names(*tracks[1:], tracks[0]), END)
    assert told[-1].state == DONE
    assert {scan.name for scan in told} == {told[-1].name}
    assert [scan.analyzed for scan in told] == sorted(scan.analyzed for scan in told)
    done = told[-1]
    assert (done.total, done.analyzed, done.existing, done.fraction) == (3, 3, 0, 1.0)
    assert done.HasField("end_time")
    assert not done.HasField("eta")
    assert done.spec == first.spec
    found = await items(api, done, page_size=2)
    assert [item.track for item in found] == tracks
    assert {item.state for item in found} == {Item.STATE_ANALYZED}
    for more, shown in (("--limit", "2"), tracks[:2]), ((), tracks):
        code, out, error = await contrafact(
            "scans", "items", done.name, "--json", *more, CONTRAFACT_ADDRESS=stack.api_address
        )
        assert [json.loads(line)["track"] for line in out.splitlines()] == shown, (code, error)
    for track in tracks:
        response = await api.GetAnalysis(analysis_pb2.GetAnalysisRequest(track=track, only_existing=True))
        assert response.analysis.HasField("create_time")

    assert await answers(api, first, names(*tracks), END) == [done]  # the very same call again
    again = (await answers(api, opening(), names(*tracks), END))[-1]
    assert (again.total, again.existing, again.analyzed) == (3, 3, 0)
    assert not any(item.job for item in await items(api, again))
    assert (await api.GetScan(analysis_pb2.GetScanRequest(name=again.name))).scan == again
    assert [response.scan async for response in api.WatchScan(analysis_pb2.WatchScanRequest(name=done.name))] == [done]
    page = await api.ListScans(analysis_pb2.ListScansRequest(page_size=1))
    assert list(page.scans) == [again]
    page = await api.ListScans(analysis_pb2.ListScansRequest(page_size=1, page_token=page.next_page_token))
    assert list(page.scans) == [done]


async def test_a_broken_stream_is_gone_on_with(api: Stub, client: Client, tmp_path: Path) -> None:
    tracks = [await upload(client, tmp_path) for _ in range(3)]
    first = opening()
    call = api.ScanLibrary()
    await call.write(first)
    await call.write(names(*tracks[:2]))
    scan = None
    while scan is None or scan.total < 2:
        scan = await read(call)
        assert scan.state == OPEN
    call.cancel()
    watching = api.WatchScan(analysis_pb2.WatchScanRequest(name=scan.name))
    while scan.analyzed < 2:  # without anybody at the stream
        scan = await read(watching)
    assert (scan.state, scan.fraction, scan.HasField("eta")) == (OPEN, 1.0, False)
    done = (await answers(api, first, names(*tracks), END))[-1]
    assert (done.name, done.state, done.total, done.analyzed) == (scan.name, DONE, 3, 3)
    assert [item.track for item in await items(api, done)] == tracks
    assert await last(watching) == done


async def test_objects_become_tracks_and_stay(api: Stub, client: Client, objects: ObjectStore, tmp_path: Path) -> None:
    folder = f"imports/{uuid.uuid4()}/"
    recording = write(tmp_path / "x.wav", noise(22_050, 2, seed=uuid.uuid4().int % 2**32), 22_050).read_bytes()
    files = {
        "Ein Stück.wav": recording,
        "again.wav": recording,
        "cover.jpg": b"\xff\xd8\xff\xe0" + bytes(999),
        "broken.wav": recording[:50],
    }
    for name, data in files.items():
        await objects.put(folder + name, data)
    done = (await answers(api, opening(prefix=folder, tags=["imported"])))[-1]
    assert (done.state, done.total, done.skipped, done.failed) == (DONE, 4, 1, 1)
    assert (done.analyzed, done.existing) == (1, 1)
    found = {item.object: item for item in await items(api, done)}
    assert set(found) == {folder + name for name in files}
    track = await client.track(found[folder + "Ein Stück.wav"].track)
    assert (track.display_name in {"Ein Stück.wav", "again.wav"}, list(track.tags)) == (True, ["imported"])
    assert track.sha256 == hashlib.sha256(recording).hexdigest()
    (skipped,) = await items(api, done, states=[Item.STATE_SKIPPED])
    assert (skipped.object, skipped.error.reason) == (folder + "cover.jpg", "NOT_AUDIO")
    wrong = await items(api, done, states=[Item.STATE_FAILED, Item.STATE_SKIPPED], page_size=1)
    assert {item.object for item in wrong} == {folder + "cover.jpg", folder + "broken.wav"}
    for name, data in files.items():
        assert b"".join([part async for part in objects.read(folder + name)]) == data


def refusal(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, list[str]]:
    """Status, reason and fields."""
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        for kind in (info, bad):
            if detail.Is(kind.DESCRIPTOR):
                detail.Unpack(kind)
    return error.code(), info.reason, [each.field for each in bad.field_violations]


@pytest.mark.parametrize(
    ("requests", "refused"),
    [
        ([], ("INVALID_ARGUMENT", "SPEC_MISSING", ["spec"])),
        ([END], ("INVALID_ARGUMENT", "SPEC_MISSING", ["spec"])),
        ([opening(), opening()], ("INVALID_ARGUMENT", "UNEXPECTED_SPEC", ["spec"])),
        ([opening(all_tracks=True), names(NOBODY)], ("INVALID_ARGUMENT", "UNEXPECTED_TRACKS", ["tracks"])),
        ([opening()], ("INVALID_ARGUMENT", "END_MISSING", ["end"])),
        ([opening(), names(NOBODY), END], ("NOT_FOUND", "TRACK_NOT_FOUND", ["tracks.tracks[0]"])),
        ([opening(prefix="imports/../tracks/")], ("INVALID_ARGUMENT", "INVALID_FIELD", ["spec.prefix"])),
        ([opening(prefix="imports//x")], ("INVALID_ARGUMENT", "INVALID_FIELD", ["spec.prefix"])),
        ([opening(prefix="tracks/")], ("INVALID_ARGUMENT", "INVALID_FIELD", ["spec.prefix"])),
        ([opening(all_tracks=False)], ("INVALID_ARGUMENT", "INVALID_FIELD", ["spec.all_tracks"])),
        ([opening(tags=["\n"])], ("INVALID_ARGUMENT", "INVALID_FIELD", ["spec.tags"])),
        ([opening(), names()], ("INVALID_ARGUMENT", "INVALID_FIELD", ["tracks.tracks"])),
    ],
)
async def test_what_makes_no_sense_is_refused(
    api: Stub, requests: list[analysis_pb2.ScanLibraryRequest], refused: tuple[str, str, list[str]]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(100):
            await answers(api, *requests)
    code, reason, fields = refusal(caught.value)
    assert (code.name, reason, fields) == refused


async def test_a_request_names_one_scan(api: Stub, client: Client, tmp_path: Path) -> None:
    request, track = str(uuid.uuid4()), await upload(client, tmp_path)
    await answers(api, opening(request), names(track), END)
    for changed in ({"all_tracks": True}, {"prefix": "imports/"}, {"tags": ["x"]}):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answers(api, opening(request, **changed))
        assert refusal(caught.value)[:2] == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_scans_that_there_are_not(api: Stub) -> None:
    name = f"scans/{uuid.UUID(int=0)}"
    calls: list[Awaitable[Any]] = [
        api.GetScan(analysis_pb2.GetScanRequest(name=name)),
        api.CancelScan(analysis_pb2.CancelScanRequest(name=name)),
        api.ListScanItems(analysis_pb2.ListScanItemsRequest(parent=name)),
        api.WatchScan(analysis_pb2.WatchScanRequest(name=name)).read(),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert refusal(caught.value)[:2] == (grpc.StatusCode.NOT_FOUND, "SCAN_NOT_FOUND")


@pytest.mark.parametrize(
    "token", ["x", "WyJ4Il0=", "WyItMSJd", "WyIxIiwgIjIiXQ==", "WyI5OTk5OTk5OTk5OTk5OTk5OTk5OTkiXQ=="]
)
async def test_tokens_that_nobody_gave(api: Stub, token: str) -> None:
    scan = (await answers(api, opening(prefix="imports/nothing/")))[-1]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.ListScanItems(analysis_pb2.ListScanItemsRequest(parent=scan.name, page_token=token))
    assert refusal(caught.value)[1:] == ("INVALID_PAGE_TOKEN", ["page_token"])


async def test_who_is_waited_for_overtakes_a_scan(
    api: Stub, jobs: job_pb2_grpc.JobServiceAsyncStub, client: Client, pool: Pool, tmp_path: Path
) -> None:
    tracks = [await upload(client, tmp_path, seconds=5) for _ in range(5)]
    call = api.ScanLibrary()
    async with unpublished(pool, client, tracks[:-1]):
        async with unpublished(pool, client, tracks[-1:]):
            await call.write(opening())
            await call.write(names(*tracks))
            scan = await read(call)
            await all_begun(api, scan, tracks)
            watched: Any = api.WatchAnalysis(analysis_pb2.WatchAnalysisRequest(track=tracks[-1]))
            name = (await watched.read()).job
            while not (job := (await jobs.GetJob(job_pb2.GetJobRequest(name=name))).job).attempt:
                await asyncio.sleep(0.1)  # until the scan's has let go, if that was at it
        assert job.priority == job_pb2.PRIORITY_INTERACTIVE
        while (response := await watched.read()) is not grpc.aio.EOF:
            last_of_all = response.analysis
        assert last_of_all.HasField("create_time")
        scan = (await api.GetScan(analysis_pb2.GetScanRequest(name=scan.name))).scan
        assert scan.analyzed + scan.existing < len(tracks)
    await call.write(END)
    scan = await last(call)
    assert (scan.state, scan.total, scan.failed) == (DONE, 5, 0)
    assert [item.state for item in await items(api, scan)][-1] == Item.STATE_EXISTING


async def test_cancelling_a_scan_cancels_its_jobs(
    api: Stub, jobs: job_pb2_grpc.JobServiceAsyncStub, client: Client, pool: Pool, tmp_path: Path
) -> None:
    tracks = [await upload(client, tmp_path, seconds=5) for _ in range(5)]
    call = api.ScanLibrary()
    async with unpublished(pool, client, tracks):
        for message in (opening(), names(*tracks), END):
            await call.write(message)
        scan = await read(call)
        await all_begun(api, scan, tracks)
        cancelled = (await api.CancelScan(analysis_pb2.CancelScanRequest(name=scan.name))).scan
        assert (cancelled.state, cancelled.HasField("end_time")) == (CANCELLED, True)
        assert await last(call) == cancelled
        assert (await api.CancelScan(analysis_pb2.CancelScanRequest(name=scan.name))).scan == cancelled
        for item in await items(api, scan):
            watched = jobs.WatchJob(job_pb2.WatchJobRequest(name=item.job))
            states = [response.event.job.state async for response in watched if response.event.HasField("job")]
            assert states[-1] == job_pb2.JOB_STATE_CANCELLED


@pytest.fixture(scope="module")
def mortal_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose worker may be killed."""
    with running_stack(
        tmp_path_factory.mktemp("mortal"),
        model_repository=FAKE_MODELS,
        weights=False,
        environment={"CONTRAFACT_LEASE_SECONDS": "4", "CONTRAFACT_SCAN_JOBS": "4"},
    ) as running:
        yield running


@pytest.mark.slow
async def test_a_worker_is_killed_in_the_middle_of_a_scan(mortal_stack: Stack, tmp_path: Path) -> None:
    settings = stack_settings(mortal_stack)
    objects, pool = ObjectStore(settings), await connect(settings)
    for seed in range(8):
        path = write(tmp_path / "x.wav", noise(10 * 22_050, 1, seed=seed), 22_050)
        await objects.put_file(f"imports/{seed}.wav", path, "audio/wav")
    await objects.close()
    worker = mortal_stack.processes["worker"]
    async with grpc.aio.insecure_channel(mortal_stack.api_address) as channel:
        api: Stub = analysis_pb2_grpc.AnalysisServiceStub(channel)
        call = api.ScanLibrary(iter([opening(prefix="imports/")]))
        async with exclusive(pool, hashlib.sha256(path.read_bytes()).hexdigest()):  # the last one is not even imported
            scan = await read(call)
            for kills in (1, 2):
                while scan.analyzed + scan.existing < kills:
                    scan = (await api.GetScan(analysis_pb2.GetScanRequest(name=scan.name))).scan
                    await asyncio.sleep(0.05)
                os.kill(worker.pid, signal.SIGKILL)
                while worker.restarts < kills or not worker.running:
                    await asyncio.sleep(0.05)
        scan = await last(call)
        assert (scan.state, scan.total, scan.failed, scan.skipped) == (DONE, 8, 0, 0)
        assert scan.analyzed + scan.existing == 8
        assert len({item.track for item in await items(api, scan)}) == 8
    await pool.close()
