"""Analyses, scans, searches and radios, over connections that break; against a peer that breaks them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import google_crc32c
import grpc.aio
import pytest
from contrafact import (
    Client,
    Embedding,
    Example,
    FailedPrecondition,
    NotFound,
    SyncClient,
    TrackSegment,
    example,
    track_query,
)
from contrafact._cli.search import bounds
from contrafact.v1 import analysis_pb2, search_pb2, track_pb2
from contrafact.v1.analysis_pb2_grpc import AnalysisServiceServicer, add_AnalysisServiceServicer_to_server
from contrafact.v1.search_pb2_grpc import SearchServiceServicer, add_SearchServiceServicer_to_server

from tests.clients.faulty_peer import QUICK, Fault, fault, play

TRACK = "tracks/00000000-0000-4000-8000-000000000001"
SCAN = "scans/00000000-0000-4000-8000-000000000002"


def known(*names: str, whole: bool = False) -> analysis_pb2.WatchAnalysisResponse:
    """An analysis with these features."""
    response = analysis_pb2.WatchAnalysisResponse(analysis=analysis_pb2.Analysis(track=TRACK))
    for name in names:
        getattr(response.analysis.features, name).SetInParent()
    if whole:
        response.analysis.create_time.GetCurrentTime()
    return response


def scan(state: analysis_pb2.ScanState.ValueType, total: int = 0) -> analysis_pb2.Scan:
    """A scan as it is."""
    return analysis_pb2.Scan(name=SCAN, state=state, total=total)


@dataclass
class SoundPeer(AnalysisServiceServicer, SearchServiceServicer):
    """The misbehaving server. Scripts hold responses and faults, and are used up, one a call."""

    address: str = ""
    requests: list[Any] = field(default_factory=list)
    watches: list[list[Any]] = field(default_factory=list)
    scans: list[list[Any]] = field(default_factory=list)
    named: list[list[str]] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    radios: list[list[Any]] = field(default_factory=list)
    clip_faults: list[tuple[int, Fault]] = field(default_factory=list)
    clips: list[bytes] = field(default_factory=list)
    none: bool = False

    async def WatchAnalysis(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        async for response in play(self.watches.pop(0), context):
            yield response

    async def GetAnalysis(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if self.none:
            await fault("NOT_FOUND", "ANALYSIS_NOT_FOUND")(context)
        return analysis_pb2.GetAnalysisResponse(analysis=known("key").analysis)

    async def ScanLibrary(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        self.requests.append((await anext(requests)).spec)
        script, named = self.scans.pop(0), list[str]()
        self.named.append(named)
        self.ended.append(False)
        if not self.requests[-1].WhichOneof("source"):
            async for request in requests:
                if request.HasField("end"):
                    self.ended[-1] = True
                    break
                named.extend(request.tracks.tracks)
                if script and callable(script[0]):
                    await script.pop(0)(context)
        async for each in play(script, context):
            yield analysis_pb2.ScanLibraryResponse(scan=each)

    async def StreamRadio(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        async for name in play(self.radios.pop(0), context):
            yield search_pb2.StreamRadioResponse(hit=search_pb2.TrackHit(track=track_pb2.Track(name=name)))

    async def SearchTracks(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return search_pb2.SearchTracksResponse(hits=[search_pb2.TrackHit(track=track_pb2.Track(name=TRACK))])

    async def EmbedClip(self, requests: AsyncIterator[Any], context: Any) -> Any:
        self.requests.append((await anext(requests)).spec)
        limit, end = self.clip_faults.pop(0) if self.clip_faults else (-1, None)
        data, count = bytearray(), 0
        async for request in requests:
            if count == limit and end is not None:
                await end(context)
            count += 1
            if request.HasField("end"):
                assert request.end.size_bytes == len(data)
                self.clips.append(bytes(data))
                return search_pb2.EmbedClipResponse(embedding=Embedding(model="m", values=[1.0]))
            assert request.chunk.offset == len(data)
            assert google_crc32c.value(request.chunk.data) == request.chunk.crc32c
            data += request.chunk.data
        return None


@pytest.fixture
async def peer() -> AsyncIterator[SoundPeer]:
    """A running peer."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    made = SoundPeer()  # type: ignore[abstract]  # not every method is needed to misbehave
    add_AnalysisServiceServicer_to_server(made, server)
    add_SearchServiceServicer_to_server(made, server)
    made.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield made
    await server.stop(0)


@pytest.fixture
async def client(peer: SoundPeer) -> AsyncIterator[Client]:
    """A client of the peer that does not wait long."""
    async with Client(peer.address, retry=QUICK) as made:
        yield made


# Analyses.


async def test_a_broken_watch_is_taken_up_again_until_the_analysis_is_whole(client: Client, peer: SoundPeer) -> None:
    peer.watches = [
        [known("waveform"), fault("UNAVAILABLE")],
        [known("waveform", "key")],  # ended too early
        [known("waveform", "key", "tempo", whole=True)],
    ]
    analysis = await client.analyze(TRACK, full=True)
    assert analysis.features.HasField("tempo")
    assert [request.view for request in peer.requests] == [analysis_pb2.ANALYSIS_VIEW_FULL] * 3


async def test_an_analysis_that_failed_says_so(client: Client, peer: SoundPeer) -> None:
    peer.watches = [[known("waveform"), fault("FAILED_PRECONDITION", "JOB_FAILED")]]
    with pytest.raises(FailedPrecondition) as caught:
        await client.analyze(TRACK)
    assert caught.value.reason == "JOB_FAILED"


async def test_no_analysis_is_none_but_no_track_is_an_error(client: Client, peer: SoundPeer) -> None:
    assert (await client.analysis(TRACK)) == known("key").analysis
    assert peer.requests[-1].only_existing
    peer.none = True
    assert await client.analysis(TRACK) is None


# Scans.


async def test_a_broken_scan_names_all_its_tracks_again(client: Client, peer: SoundPeer) -> None:
    names = [f"tracks/{number:032}" for number in range(2500)]
    peer.scans = [
        [fault("UNAVAILABLE")],
        [scan(analysis_pb2.SCAN_STATE_RUNNING, 2500), scan(analysis_pb2.SCAN_STATE_DONE, 2500)],
    ]
    states = [each.state async for each in client.scan(names)]
    assert states == [analysis_pb2.SCAN_STATE_RUNNING, analysis_pb2.SCAN_STATE_DONE]
    assert peer.named[-1] == names
    assert peer.ended == [False, True]
    assert len({spec.request_id for spec in peer.requests}) == 1


async def test_a_refusal_while_tracks_are_named_keeps_its_reason(client: Client, peer: SoundPeer) -> None:
    for _ in range(5):
        peer.scans = [[fault("NOT_FOUND", "TRACK_NOT_FOUND")]]
        with pytest.raises(NotFound) as caught:
            async for _ in client.scan(f"tracks/{number:032}" for number in range(50_000)):
                pass
        assert caught.value.reason == "TRACK_NOT_FOUND"


async def test_what_is_scanned(client: Client, peer: SoundPeer) -> None:
    peer.scans = [[scan(analysis_pb2.SCAN_STATE_DONE)], [scan(analysis_pb2.SCAN_STATE_CANCELLED)]]
    assert [each.state async for each in client.scan()] == [analysis_pb2.SCAN_STATE_DONE]
    async for _ in client.scan(prefix="imports/vinyl/", tags=["vinyl"]):
        pass
    everything, prefix = peer.requests
    assert everything.all_tracks
    assert (prefix.prefix, list(prefix.tags)) == ("imports/vinyl/", ["vinyl"])
    with pytest.raises(ValueError, match="tracks or of a prefix"):
        await anext(client.scan([TRACK], prefix="imports/"))


async def test_leaving_a_scan_leaves_no_thread(client: Client, peer: SoundPeer) -> None:
    async def forever(context: Any) -> None:
        await asyncio.sleep(3600)

    peer.scans = [[scan(analysis_pb2.SCAN_STATE_RUNNING), forever]]
    async with contextlib.aclosing(client.scan()) as scans:
        async for _ in scans:
            break
    async with asyncio.timeout(60):
        while any("contrafact-exchange" in each.name for each in threading.enumerate()):
            await asyncio.sleep(0.05)


# Searches.


async def test_a_query_says_what_was_asked(client: Client, peer: SoundPeer) -> None:
    clip = Embedding(model="m", values=[1.0])
    part = TrackSegment(track=TRACK, start_seconds=1, end_seconds=2)
    (hit,) = await client.search(
        TRACK, part, example(clip, weight=-0.5), limit=7, bpm=(120, None), keys=["8A"], lufs=(None, -9), tags=["a"]
    )
    assert hit.track.name == TRACK
    (request,) = peer.requests
    assert list(request.query.examples) == [
        Example(track=TRACK),
        Example(segment=part),
        Example(embedding=clip, weight=-0.5),
    ]
    found = request.query.filter
    assert (found.min_bpm, found.HasField("max_bpm"), found.max_lufs) == (120, False, -9)
    assert (list(found.keys), list(found.tags), request.limit) == (["8A"], ["a"], 7)
    assert track_query(exclude=[track_pb2.Track(name=TRACK)]).filter.exclude == [TRACK]


async def test_a_broken_clip_is_sent_again(client: Client, peer: SoundPeer, tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "clip.wav").write_bytes(data)
    peer.clip_faults = [(1, fault("UNAVAILABLE"))]
    embedding = await client.embed_clip(tmp_path / "clip.wav", start=1, seconds=2)
    assert embedding.model == "m"
    assert peer.clips == [data]
    assert [(spec.start_seconds, spec.seconds) for spec in peer.requests] == [(1, 2)] * 2


async def test_a_broken_radio_goes_on_after_the_last_track(client: Client, peer: SoundPeer) -> None:
    names = [f"tracks/{number}" for number in range(6)]
    peer.radios = [[*names[:2], fault("UNAVAILABLE")], [*names[2:4], fault("CANCELLED")], names[4:]]
    heard = [hit.track.name async for hit in client.radio(TRACK, played=["tracks/before"], seed=5)]
    assert heard == names
    assert [list(request.played) for request in peer.requests] == [
        ["tracks/before"],
        ["tracks/before", *names[:2]],
        ["tracks/before", *names[:4]],
    ]


async def test_without_an_event_loop(peer: SoundPeer) -> None:
    peer.watches = [[known("key", whole=True)]]
    peer.radios = [[f"tracks/{number}" for number in range(100)]]

    def work() -> None:
        with SyncClient(peer.address, retry=QUICK) as client:
            assert client.analyze(TRACK).features.HasField("key")
            assert len(list(islice(client.radio(), 3))) == 3
            assert client.search(TRACK)[0].track.name == TRACK

    await asyncio.to_thread(work)


# The command's words.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (None, None)),
        ("120-128", (120, 128)),
        ("120-", (120, None)),
        ("-128", (None, 128)),
        ("-14..-9", (-14, -9)),
        ("..-9.5", (None, -9.5)),
        ("-14..", (-14, None)),
        ("59.5-60.5", (59.5, 60.5)),
    ],
)
def test_bounds(text: str, expected: tuple[float | None, float | None]) -> None:
    assert bounds(text) == expected


@pytest.mark.parametrize("text", ["-", "..", "fast", "1-2-3", "120", "1e3-2e3", "nan-5"])
def test_what_are_no_bounds(text: str) -> None:
    with pytest.raises(ValueError, match="is not like"):
        bounds(text)
