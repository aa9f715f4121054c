"""What a client does with tracks it knows more about: tags, marks, analyses, and scans of whole libraries."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from contrafact import _words
from contrafact._channel import Connection
from contrafact._errors import ContrafactError, NotFound, Unavailable
from contrafact._exchange import exchange
from contrafact._job import JobHandle
from contrafact._retry import Attempts
from contrafact._watch import get_job
from contrafact.v1 import analysis_pb2, track_pb2
from contrafact.v1.analysis_pb2 import Analysis, Scan, ScanItem, Waveform
from contrafact.v1.analysis_pb2_grpc import AnalysisServiceStub
from contrafact.v1.track_pb2 import Track

ENDED = frozenset({analysis_pb2.SCAN_STATE_DONE, analysis_pb2.SCAN_STATE_CANCELLED})
_TRACKS = 1000  # named in one message


def track_name(track: Track | str) -> str:
    """Return the resource name of a track that is given as a message or by its name."""
    return track if isinstance(track, str) else track.name


def _view(full: bool) -> analysis_pb2.AnalysisView.ValueType:
    return analysis_pb2.ANALYSIS_VIEW_FULL if full else analysis_pb2.ANALYSIS_VIEW_BASIC


class AnalysisMethods:
    """The methods of :class:`contrafact.Client` that are about analyses."""

    _connection: Connection

    async def update_track(
        self, track: Track | str, *, display_name: str | None = None, tags: Iterable[str] | None = None
    ) -> Track:
        """Change what a track is called, or its tags; what is None stays as it is.

        Raises:
            InvalidArgument: nothing is to be changed, or to what it cannot be.
        """
        given = {"display_name": display_name, "tags": tags}
        request = track_pb2.UpdateTrackRequest(
            track=Track(name=track_name(track), display_name=display_name or "", tags=tags or ())
        )
        request.update_mask.paths.extend(path for path, value in given.items() if value is not None)
        return (await self._connection.unary(self._connection.tracks.UpdateTrack, request)).track

    async def mark_track(
        self, track: Track | str, *marks: str, priority: str = "background"
    ) -> JobHandle | None:
        """Say what a track is wanted for, and have the stems for it made and kept ready.

        Args:
            track: the track.
            marks: "studio" (vocals, drums, bass, other), "karaoke" (vocals, instrumental), both, or none.
            priority: "interactive" or "background".

        Returns:
            The job that makes the stems; None: there is nothing to make.
        """
        request = track_pb2.UpdateTrackRequest(
            track=Track(name=track_name(track), marks=map(_words.mark, marks)),
            priority=_words.priority(priority),
        )
        request.update_mask.paths.append("marks")
        answer = await self._connection.unary(self._connection.tracks.UpdateTrack, request)
        return (
            JobHandle(self._connection, await get_job(self._connection, answer.jobs[0]))
            if answer.jobs
            else None
        )

    async def analyze(self, track: Track | str, *, full: bool = False) -> Analysis:
        """Return the analysis of a track, which is made if there is none yet.

        Args:
            track: the track.
            full: with all onsets and beats and the pitch contour.

        Raises:
            FailedPrecondition: it could not be analysed; ``reason`` is JOB_FAILED or JOB_CANCELLED.
        """
        async with contextlib.aclosing(self.watch_analysis(track, full=full)) as responses:
            async for response in responses:
                if response.analysis.HasField("create_time"):
                    return response.analysis
        raise AssertionError("unreachable: the last message has the whole")

    async def watch_analysis(
        self, track: Track | str, *, full: bool = False
    ) -> AsyncGenerator[analysis_pb2.WatchAnalysisResponse, None]:
        """Yield the analysis of a track while it is made, with more and more features; the last one is whole.

        A connection that breaks is taken up again; what was known then comes once more.
        """
        attempts = Attempts(self._connection)
        request = analysis_pb2.WatchAnalysisRequest(track=track_name(track), view=_view(full))
        while True:
            stream = self._connection.stream(self._connection.analyses.WatchAnalysis, request)
            try:
                async with contextlib.aclosing(stream) as responses:
                    async for response in responses:
                        attempts.progressed()
                        yield response
                        if response.analysis.HasField("create_time"):
                            return
                raise Unavailable("the stream ended before the analysis", reason="STREAM_ENDED")
            except ContrafactError as error:
                await attempts.failed(error)

    async def analysis(self, track: Track | str, *, full: bool = False) -> Analysis | None:
        """Return the analysis of a track, as far as it has come; None: nobody has begun it."""
        request = analysis_pb2.GetAnalysisRequest(
            track=track_name(track), view=_view(full), only_existing=True
        )
        try:
            return (await self._connection.unary(self._connection.analyses.GetAnalysis, request)).analysis
        except NotFound as error:
            if error.reason == "TRACK_NOT_FOUND":
                raise
            return None

    async def waveform(
        self, track: Track | str, *, start: float = 0.0, end: float = 0.0, points: int = 0
    ) -> Waveform:
        """Return the shape of a stretch of an analysed track.

        Args:
            track: the track.
            start: where to begin, in seconds.
            end: where to end, in seconds; 0: the end of the track.
            points: how many, at most 20,000; 0: 1,000.

        Raises:
            NotFound: it is not analysed yet.
        """
        request = analysis_pb2.GetWaveformRequest(
            track=track_name(track), start_seconds=start, end_seconds=end, points=points
        )
        return (await self._connection.unary(self._connection.analyses.GetWaveform, request)).waveform

    async def album_loudness(self, tracks: Iterable[Track | str]) -> analysis_pb2.GetAlbumLoudnessResponse:
        """Return loudness, gain and true peak of analysed tracks played one after the other."""
        request = analysis_pb2.GetAlbumLoudnessRequest(tracks=map(track_name, tracks))
        return await self._connection.unary(self._connection.analyses.GetAlbumLoudness, request)

    async def scan(
        self,
        tracks: Iterable[Track | str] | None = None,
        *,
        prefix: str = "",
        tags: Iterable[str] = (),
        request_id: str | None = None,
    ) -> AsyncGenerator[Scan, None]:
        """Analyse many tracks in the background, and yield the scan as it is, until it has ended.

        It goes on when this is left early. A connection that breaks is taken up again.

        Args:
            tracks: which; None, and no ``prefix``: all that the caller has. Kept until all were named.
            prefix: rather those of which there are recordings below this prefix of the object store.
            tags: what tracks made from a prefix are tagged with.
            request_id: a UUID that names the scan, to go on with it in another process; None: a new one.

        Raises:
            NotFound: there is no such track.
            ValueError: both tracks and a prefix were given.
        """
        if tracks is not None and prefix:
            raise ValueError("a scan is of tracks or of a prefix")
        spec = analysis_pb2.ScanSpec(request_id=request_id or str(uuid.uuid4()), tags=tags)
        if prefix:
            spec.prefix = prefix
        elif tracks is None:
            spec.all_tracks = True
        names = None if tracks is None else [track_name(track) for track in tracks]

        def stream() -> AsyncGenerator[analysis_pb2.ScanLibraryResponse, None]:
            method = AnalysisServiceStub(self._connection.blocking_channel).ScanLibrary
            return exchange(method, _scan_messages(spec, names), self._connection.metadata())

        async with contextlib.aclosing(self._follow(stream)) as scans:
            async for scan in scans:
                yield scan

    async def watch_scan(self, scan: Scan | str) -> AsyncGenerator[Scan, None]:
        """Yield a scan as it is, at each change, until it has ended; over any number of connections."""
        request = analysis_pb2.WatchScanRequest(name=_scan_name(scan))

        def stream() -> AsyncGenerator[analysis_pb2.WatchScanResponse, None]:
            return self._connection.stream(self._connection.analyses.WatchScan, request)

        async with contextlib.aclosing(self._follow(stream)) as scans:
            async for each in scans:
                yield each

    async def _follow(self, stream: Callable[[], AsyncGenerator[Any, None]]) -> AsyncGenerator[Scan, None]:
        attempts = Attempts(self._connection)
        while True:
            try:
                async with contextlib.aclosing(stream()) as responses:
                    async for response in responses:
                        attempts.progressed()
                        yield response.scan
                        if response.scan.state in ENDED:
                            return
                raise Unavailable("the stream ended before the scan", reason="STREAM_ENDED")
            except ContrafactError as error:
                await attempts.failed(error)

    async def scan_of(self, name: str) -> Scan:
        """Get one scan by its resource name, "scans/{id}"."""
        request = analysis_pb2.GetScanRequest(name=name)
        return (await self._connection.unary(self._connection.analyses.GetScan, request)).scan

    def scans(self, *, page_size: int = 0) -> AsyncGenerator[Scan, None]:
        """Yield the caller's scans, newest first, asking for page after page."""
        request = analysis_pb2.ListScansRequest(page_size=page_size)
        return self._connection.pages(lambda: self._connection.analyses.ListScans, request, "scans")

    async def cancel_scan(self, scan: Scan | str) -> Scan:
        """Cancel a scan and its jobs; what was analysed stays."""
        request = analysis_pb2.CancelScanRequest(name=_scan_name(scan))
        return (await self._connection.unary(self._connection.analyses.CancelScan, request)).scan

    def scan_items(
        self, scan: Scan | str, *, states: Iterable[str] = (), page_size: int = 0
    ) -> AsyncGenerator[ScanItem, None]:
        """Yield what a scan has found.

        Args:
            scan: the scan.
            states: only "waiting", "existing", "analyzed", "skipped" or "failed" ones; none: all.
            page_size: items to ask for at once, at most 1,000; 0: the server's choice.
        """
        request = analysis_pb2.ListScanItemsRequest(
            parent=_scan_name(scan), states=map(_words.item_state, states), page_size=page_size
        )
        return self._connection.pages(lambda: self._connection.analyses.ListScanItems, request, "items")


def _scan_name(scan: Scan | str) -> str:
    return scan if isinstance(scan, str) else scan.name


def _scan_messages(
    spec: analysis_pb2.ScanSpec, names: list[str] | None
) -> Iterator[analysis_pb2.ScanLibraryRequest]:
    """Yield the specification and, where names are to be sent, those and the end."""
    yield analysis_pb2.ScanLibraryRequest(spec=spec)
    if names is None:
        return
    rest = iter(names)
    while some := list(islice(rest, _TRACKS)):
        yield analysis_pb2.ScanLibraryRequest(tracks=analysis_pb2.ScanTracks(tracks=some))
    yield analysis_pb2.ScanLibraryRequest(end=analysis_pb2.ScanEnd())
