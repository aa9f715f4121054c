"""AnalysisService: analyses of single tracks; ``scans`` has those of libraries."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from uuid import UUID, uuid5

import numpy as np
from contrafact.v1 import analysis_pb2, analysis_pb2_grpc, job_pb2

from servers.analyzer.album import album_loudness
from servers.analyzer.loudness import Histogram
from servers.analyzer.waveform import Peaks, reduced
from servers.orchestrator.analyses.cache import AnalysisCache
from servers.orchestrator.analyses.features import Feature, told
from servers.orchestrator.analyses.partial import PartialAnalyses
from servers.orchestrator.analyses.store import AnalysisStore, Found
from servers.orchestrator.api.creation import JobCreator, Subject
from servers.orchestrator.api.live import SILENCE_SECONDS, ended_without
from servers.orchestrator.api.resources import find_track, resource_id
from servers.orchestrator.api.scans import ScanMethods
from servers.orchestrator.jobs import locks
from servers.orchestrator.jobs.feeds import is_final
from servers.orchestrator.jobs.hub import EventHub
from servers.orchestrator.jobs.store import JobStore
from servers.orchestrator.jobs.views import JobViews
from servers.orchestrator.scans.store import ScanStore
from servers.platform.errors import ApiError, invalid, not_found, precondition
from servers.platform.identity import principal
from servers.platform.interceptors import Context
from servers.storage.database import Pool, Row

_NAMESPACE = UUID("0a4bb1c6-6f3c-4e0e-9b52-1f0a3a6c2d45")
_STANDS = dt.timedelta(seconds=60)
_RENEWED = dt.timedelta(hours=1)  # so often, at most, an old analysis is made anew
_PAUSE_SECONDS = 0.1  # between two looks of one watcher
_PROGRESS_SECONDS = 1.0  # between two messages of nothing but progress
_POINTS = 1000  # of a waveform, unless others are asked for
_DRAWINGS = 4  # at once: of ten hours a waveform has 11 MB


class AnalysisService(ScanMethods, analysis_pb2_grpc.AnalysisServiceServicer):
    """Analyses of tracks, made when somebody asks for them."""

    def __init__(
        self,
        pool: Pool,
        store: JobStore,
        views: JobViews,
        creator: JobCreator,
        hub: EventHub,
        analyses: AnalysisStore,
        partial: PartialAnalyses,
        cache: AnalysisCache,
        scans: ScanStore,
    ) -> None:
        ScanMethods.__init__(self, scans)
        self._pool = pool
        self._store = store
        self._views = views
        self._creator = creator
        self._hub = hub
        self._analyses = analyses
        self._partial = partial
        self._cache = cache
        self._drawing = asyncio.Semaphore(_DRAWINGS)

    async def GetAnalysis(
        self, request: analysis_pb2.GetAnalysisRequest, context: Context
    ) -> analysis_pb2.GetAnalysisResponse:
        full = request.view == analysis_pb2.ANALYSIS_VIEW_FULL
        track_id = resource_id("track", request.track)
        if not full and (cached := await self._cache.get(track_id, principal().id)) is not None:
            return analysis_pb2.GetAnalysisResponse(analysis=cached)
        found, job = await self._ask(request.track, full=full, begin=not request.only_existing)
        if job is not None:
            reader = self._partial.reader(found.sha256)
            await reader.read()
            found.analysis.features.CopyFrom(reader.features)
        return analysis_pb2.GetAnalysisResponse(analysis=found.analysis, job=job)

    async def WatchAnalysis(
        self, request: analysis_pb2.WatchAnalysisRequest, context: Context
    ) -> AsyncIterator[analysis_pb2.WatchAnalysisResponse]:
        full = request.view == analysis_pb2.ANALYSIS_VIEW_FULL
        found, job = await self._ask(request.track, full=full, begin=True)
        said: list[Feature] = []
        if job is not None:
            async with aclosing(self._growing(found, job)) as responses:
                async for response in responses:
                    said += response.new_features
                    yield response
            found = await self._ended(request.track, job, full=full)
        new = [feature for feature in told(found.analysis.features) if feature not in said]
        yield analysis_pb2.WatchAnalysisResponse(analysis=found.analysis, new_features=new, fraction=1.0)

    async def GetWaveform(
        self, request: analysis_pb2.GetWaveformRequest, context: Context
    ) -> analysis_pb2.GetWaveformResponse:
        start, end = request.start_seconds, request.end_seconds
        if 0 < end <= start:
            raise invalid("EMPTY_RANGE", "it must end after it begins", "end_seconds")
        track_id = resource_id("track", request.track)
        async with self._drawing:
            whole = await self._analyses.waveform(track_id, principal().id)
            if whole is None:
                await self._find(request.track, full=False)
                raise not_found("analysis", request.track)
            waveform = await asyncio.to_thread(_reduced, whole, start, end, request.points or _POINTS)
        return analysis_pb2.GetWaveformResponse(waveform=waveform)

    async def GetAlbumLoudness(
        self, request: analysis_pb2.GetAlbumLoudnessRequest, context: Context
    ) -> analysis_pb2.GetAlbumLoudnessResponse:
        ids = {name: resource_id("track", name) for name in request.tracks}
        known = await self._analyses.find_all(list(ids.values()), principal().id)
        heard = []
        for name, track_id in ids.items():
            if track_id not in known:
                raise not_found("track", name)
            if not known[track_id].made:
                raise precondition("NOT_ANALYZED", f"{name!r} is not analysed", name=name)
            features = known[track_id].analysis.features
            if features.HasField("loudness"):
                heard.append(features.loudness)
        album = album_loudness(
            Histogram(loudness.histogram.first_bin, tuple(loudness.histogram.counts)) for loudness in heard
        )
        if album is None:
            return analysis_pb2.GetAlbumLoudnessResponse()
        return analysis_pb2.GetAlbumLoudnessResponse(
            integrated_lufs=album.integrated_lufs,
            album_gain_db=album.album_gain_db,
            true_peak_db=max(loudness.true_peak_db for loudness in heard),
        )

    async def _ask(self, name: str, *, full: bool, begin: bool) -> tuple[Found, job_pb2.Job | None]:
        """The track with its analysis; or with the job that is at it, which is begun if need be and ``begin``.

        One of an older version, or with another model's embedding, is as good as any until the new one, begun in the
        background, is there.
        """
        job = None
        for _ in range(3):  # a job that succeeds between the two look-ups has made an analysis
            found = await self._find(name, full=full)
            if found.made:
                if found.stale and begin:
                    await self._renew(found)
                elif not found.stale and not full:
                    await self._cache.put(found.track_id, principal().id, found.analysis)
                return found, None
            job = await self._job(found, begin=begin)
            if job.state != job_pb2.JOB_STATE_SUCCEEDED:
                break
        return found, job

    async def _find(self, name: str, *, full: bool) -> Found:
        found = await self._analyses.find(resource_id("track", name), principal().id, full=full)
        if found is None:
            raise not_found("track", name)
        return found

    async def _job(self, found: Found, *, begin: bool) -> job_pb2.Job:
        """The job that is at the analysis. If there is none, and ``begin``, a new one, the same for all who ask now.

        One in the background is not what somebody waits for: a new job does the same, and overtakes it. A failure that
        another attempt would repeat stands for a minute; whoever asks later has it tried again.
        """
        row = await self._pool.fetchrow(
            """SELECT * FROM jobs WHERE track_id = $1 AND owner = $2 AND kind = 'ANALYZE'
               ORDER BY ended_at IS NULL AND NOT cancel_requested AND (priority = 'INTERACTIVE' OR NOT $3) DESC,
                        created_at DESC, id DESC LIMIT 1""",
            found.track_id,
            principal().id,
            begin,
        )
        if row is not None and (_is_at_it(row, begin) or (begin and _stands(row))):
            return await self._views.job(row)
        if not begin:
            raise not_found("analysis", found.analysis.track)
        # Derived from what is the newest now, so that all who find the same make the same request.
        return await self._create(found, str(row["id"]) if row else "", job_pb2.PRIORITY_INTERACTIVE)

    async def _renew(self, found: Found) -> None:
        """Have the analysis made anew in the background, unless that was tried lately or many jobs wait."""
        newest = await self._pool.fetchrow(
            """SELECT id, coalesce(ended_at > now() - $3::interval, true) AS tried FROM jobs
               WHERE track_id = $1 AND owner = $2 AND kind = 'ANALYZE' ORDER BY created_at DESC, id DESC LIMIT 1""",
            found.track_id,
            principal().id,
            _RENEWED,
        )
        # Reading many tracks must not use up what their owner may have others wait for.
        if (newest is not None and newest["tried"]) or await self._creator.is_crowded():
            return
        with suppress(ApiError):  # the queue is full: another time
            await self._create(found, f"renewal {newest and newest['id']}", job_pb2.PRIORITY_BACKGROUND)

    async def _create(self, found: Found, request: str, priority: job_pb2.Priority.ValueType) -> job_pb2.Job:
        name = found.analysis.track

        async def subject() -> Subject:
            track = await find_track(self._pool, name)
            return Subject(track["id"], None, locks.of_analysis(track["sha256"], self._analyses.version))

        request_id = str(uuid5(_NAMESPACE, f"{name} {self._analyses.version} {request}"))
        return await self._creator.create("ANALYZE", job_pb2.AnalysisSpec(track=name), request_id, priority, subject)

    async def _growing(
        self, found: Found, job: job_pb2.Job
    ) -> AsyncGenerator[analysis_pb2.WatchAnalysisResponse, None]:
        """What is known, and each time that more is, until the job has ended."""
        if is_final(job):
            return
        reader = self._partial.reader(found.sha256)
        spoke, fraction = 0.0, -1.0
        async with self._hub.listen(resource_id("job", job.name), progress=True) as listener:
            while not listener.ended:
                new = await reader.read()
                moved = listener.fraction != fraction and time.monotonic() >= spoke + _PROGRESS_SECONDS
                if new or moved:
                    spoke, fraction = time.monotonic(), listener.fraction
                    found.analysis.features.CopyFrom(reader.features)
                    yield analysis_pb2.WatchAnalysisResponse(
                        analysis=found.analysis, new_features=new, job=job.name, fraction=fraction
                    )
                await listener.wait(SILENCE_SECONDS)
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _ended(self, name: str, job: job_pb2.Job, *, full: bool) -> Found:
        """The analysis that a job that has ended has made, or why it has not."""
        found = await self._analyses.find(resource_id("track", name), principal().id, full=full)
        if found is not None and found.made:
            return found
        row = await self._store.get(resource_id("job", job.name))
        if row is not None and row["state"] != "SUCCEEDED":
            raise ended_without(row, "the analysis")
        raise not_found("track", name)  # deleted meanwhile


def _is_at_it(row: Row, begin: bool) -> bool:
    unfinished = row["ended_at"] is None and not row["cancel_requested"]
    return unfinished and (row["priority"] == "INTERACTIVE" or not begin)


def _stands(row: Row) -> bool:
    failed = row["state"] == "FAILED" and not row["error"]["retryable"]
    return failed and dt.datetime.now(dt.UTC) - row["ended_at"] < _STANDS


def _reduced(whole: analysis_pb2.Waveform, start: float, end: float, points: int) -> analysis_pb2.Waveform:
    peaks = Peaks(
        np.frombuffer(whole.minima, np.int8), np.frombuffer(whole.maxima, np.int8), np.frombuffer(whole.rms, np.uint8)
    )
    part = reduced(peaks, start, end, points)
    return analysis_pb2.Waveform(
        start_seconds=part.start_seconds,
        points_per_second=part.points_per_second,
        minima=part.minima.tobytes(),
        maxima=part.maxima.tobytes(),
        rms=part.rms.tobytes(),
    )
