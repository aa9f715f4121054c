"""The pipeline of ANALYZE jobs: decode, and let the analyzer measure; what it knows is told at once and stored last."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import asyncpg
from contrafact.engine.v1 import analyzer_pb2
from contrafact.v1 import analysis_pb2

from servers.media.decode import decode
from servers.orchestrator.analyses.features import FEATURES, Feature, told
from servers.orchestrator.analyses.partial import PartialAnalyses
from servers.orchestrator.analyses.store import AnalysisStore, Made
from servers.orchestrator.engines.analyzer import Analyzer
from servers.orchestrator.engines.embedder import Listener
from servers.orchestrator.jobs.runner import JobFailure, JobRun
from servers.orchestrator.pipelines.failures import told_to_the_caller
from servers.orchestrator.pipelines.recordings import FETCHED, Recordings, channels
from servers.orchestrator.search.index import index_recording
from servers.platform.tasks import together
from servers.storage.database import Pool, Row, exclusive

ANALYZED = 0.99  # share of the whole work that is done then
# The waveform of longer recordings has to be made apart to come early: see Analyzer.analyze.
LONG_SECONDS = 360.0
_STEPS = {1: 0.01, 2: 0.1}  # of progress, between two events that tell it, by priority: few watch a scan's jobs

_EARLY: list[Feature] = [
    analysis_pb2.FEATURE_WAVEFORM,
    analysis_pb2.FEATURE_QUALITY,
    analysis_pb2.FEATURE_LOUDNESS,
    analysis_pb2.FEATURE_STEREO,
]
_ALL: list[Feature] = list(FEATURES.values())
_EMBEDDING = analysis_pb2.FEATURE_EMBEDDING
_LATE: list[Feature] = [feature for feature in FEATURES.values() if feature not in _EARLY]


class AnalyzePipeline:
    """Runs ANALYZE jobs.

    Args:
        pool, recordings, analyses, partial, analyzer: what they work with.
        embeddings: what tells the embedding in the analyzer's place.
    """

    def __init__(
        self,
        pool: Pool,
        recordings: Recordings,
        analyses: AnalysisStore,
        partial: PartialAnalyses,
        analyzer: Analyzer,
        embeddings: Listener | None = None,
    ) -> None:
        self._pool = pool
        self._recordings = recordings
        self._analyses = analyses
        self._partial = partial
        self._analyzer = analyzer
        self._embeddings = embeddings

    async def __call__(self, run: JobRun) -> None:
        """Analyse the recording, unless the present version of the analyzer has."""
        recording = await self._recordings.of(run)
        sha256 = recording["sha256"]
        if await self._analyses.is_made(sha256):
            return
        with told_to_the_caller():
            async with self._recordings.fetched(run, recording) as (source,):
                await run.stage("ANALYZE")
                waited_for = run.priority == 1 and recording["frames"] > LONG_SECONDS * recording["sample_rate"]
                passes = self._passes([_EARLY, _LATE] if waited_for else [_ALL])
                growth = _Growth(run, sha256, self._partial, len(passes))
                await together(
                    *(self._pass(run, recording, source, *one, growth, number) for number, one in enumerate(passes))
                )
        await run.stage("PUBLISH")
        await self._publish(run, sha256, growth.made())

    def _passes(self, features: list[list[Feature]]) -> list[tuple[Listener, list[Feature]]]:
        """Who is to listen for which features, each to all of the recording."""
        if self._embeddings is None:
            return [(self._analyzer, wanted) for wanted in features]
        others = [[feature for feature in wanted if feature != _EMBEDDING] for wanted in features]
        return [*((self._analyzer, wanted) for wanted in others), (self._embeddings, [_EMBEDDING])]

    async def _pass(
        self,
        run: JobRun,
        recording: Row,
        source: Path,
        listener: Listener,
        wanted: list[Feature],
        growth: _Growth,
        number: int,
    ) -> None:
        spec = analyzer_pb2.AnalyzeSpec(
            sample_rate=recording["sample_rate"],
            channels=channels(recording),
            frames=recording["frames"],
            features=wanted,
        )
        async with (
            aclosing(decode(source)) as blocks,
            aclosing(listener.analyze(spec, blocks, priority=run.priority)) as responses,
        ):
            async for response in responses:
                await growth.take(number, response)

    async def _publish(self, run: JobRun, sha256: str, made: Made) -> None:
        # Against the deletion of one of the recording's tracks, and against a new one.
        async with exclusive(self._pool, sha256) as connection:
            try:
                async with connection.transaction():
                    await run.store.hold(connection, run.id, run.attempt)
                    await self._analyses.save(connection, sha256, made)
                    await index_recording(connection, sha256)
            except asyncpg.ForeignKeyViolationError as error:
                raise JobFailure("TRACK_DELETED", "the track was deleted") from error
        await self._partial.forget(sha256)


class _Growth:
    """What one or several passes over a recording have found."""

    def __init__(self, run: JobRun, sha256: str, partial: PartialAnalyses, passes: int) -> None:
        self._run = run
        self._sha256 = sha256
        self._partial = partial
        self._progress = [0.0] * passes
        self._step = _STEPS[run.priority]
        self._told = 0.0  # progress
        self._known: set[Feature] = set()
        self._features = analysis_pb2.Features()
        self._waveform: list[analysis_pb2.Waveform] = []
        self._segments: list[analyzer_pb2.SegmentEmbeddings] = []
        self._analyzer = ""

    async def take(self, number: int, response: analyzer_pb2.AnalyzeResponse) -> None:
        """Keep what the analyzer says of that pass, and tell who waits of features that are new, and of progress."""
        match response.WhichOneof("response"):
            case "features":
                self._features.MergeFrom(response.features)
                new = set(told(response.features)) - self._known
                if new:
                    self._known |= new
                    await self._partial.add(self._sha256, response.features)
                    await self._tell()  # which has them look
            case "waveform":
                self._waveform.append(response.waveform)
            case "segments":
                self._segments.append(response.segments)
            case "report":
                self._analyzer = response.report.analyzer
            case "progress":
                self._progress[number] = response.progress
                if self._done() >= self._told + self._step:
                    await self._tell()

    def made(self) -> Made:
        """All of it."""
        waveform, segments = analysis_pb2.Waveform(), analyzer_pb2.SegmentEmbeddings()
        if self._waveform:
            waveform.CopyFrom(self._waveform[0])
            for part in ("minima", "maxima", "rms"):
                setattr(waveform, part, b"".join(getattr(piece, part) for piece in self._waveform))
        if self._segments:
            segments.CopyFrom(self._segments[0])
            segments.values = b"".join(piece.values for piece in self._segments)
        return Made(self._analyzer, self._features, waveform, segments)

    def _done(self) -> float:
        return sum(self._progress) / len(self._progress)

    async def _tell(self) -> None:
        self._told = self._done()
        await self._run.progress(FETCHED + (ANALYZED - FETCHED) * self._told)
