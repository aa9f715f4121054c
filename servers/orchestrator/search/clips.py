"""Clips: sounds to search by, of which nothing is kept but what they sound like."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import grpc
from contrafact.engine.v1 import analyzer_pb2
from contrafact.v1 import analysis_pb2, search_pb2

from servers.inference.asking import InferenceFailed, InferenceRefused
from servers.inference.keeper import ModelUnavailable
from servers.media.errors import MediaError
from servers.media.probe import TrackFacts, probe_isolated
from servers.orchestrator.chunks import Expected, receive
from servers.orchestrator.engines.analyzer import AnalyzerError
from servers.orchestrator.engines.embedder import Listener
from servers.orchestrator.pacing import paced
from servers.orchestrator.stretches import part, stretch
from servers.platform import telemetry
from servers.platform.errors import ApiError, invalid
from servers.platform.settings import Settings
from servers.platform.slots import INTERACTIVE

MAX_CLIPS = 16  # at once in one API server
MAX_PROBES = 2
PROBE_SECONDS = 120.0
LONGEST_SECONDS = 600.0
LOWEST_RATE = 1000  # that the analyzer takes

Requests = AsyncIterator[search_pb2.EmbedClipRequest]


class Clips:
    """Computes the embeddings of clips, a few at a time."""

    def __init__(self, settings: Settings, listener: Listener) -> None:
        self._settings = settings
        self._listener = listener
        self._probes = asyncio.Semaphore(MAX_PROBES)
        self._active = 0

    async def embed(self, requests: Requests) -> analysis_pb2.Embedding:
        """The embedding of the clip that a stream of messages sends; ApiError if it is refused."""
        if self._active >= MAX_CLIPS:
            raise _too_many()
        self._active += 1
        try:
            in_time = paced(requests, lambda request: len(request.chunk.data), self._settings, "send the clip again")
            first = await anext(in_time, None)
            if first is None or first.WhichOneof("payload") != "spec":
                raise invalid("SPEC_MISSING", "the first message must be the specification", "spec")
            with tempfile.TemporaryDirectory(prefix="contrafact-", dir=self._settings.temporary_folder) as folder:
                path = Path(folder) / "clip"
                await receive(in_time, path, Expected("the clip", self._settings.max_clip_bytes, self._too_large))
                return await self._embedding(path, await self._probe(path), first.spec)
        finally:
            self._active -= 1

    def _too_large(self, field: str) -> ApiError:
        limit = self._settings.max_clip_bytes
        return invalid("CLIP_TOO_LARGE", f"a clip has at most {limit} bytes", field, limit_bytes=str(limit))

    async def _probe(self, path: Path) -> TrackFacts:
        try:
            async with self._probes:
                return await probe_isolated(path, max_seconds=self._settings.max_track_seconds, timeout=PROBE_SECONDS)
        except MediaError as error:
            raise invalid(error.reason, error.message, "chunk") from error

    async def _embedding(self, path: Path, facts: TrackFacts, clip: search_pb2.ClipSpec) -> analysis_pb2.Embedding:
        rate = facts.sample_rate
        if rate < LOWEST_RATE:
            raise invalid("SAMPLE_RATE_TOO_LOW", f"the clip has {rate} Hz; {LOWEST_RATE} are needed", "chunk")
        start, frames = part(clip.start_seconds, clip.seconds or LONGEST_SECONDS, rate, facts.frames)
        if frames < 1:
            raise invalid("STRETCH_OUTSIDE", "nothing of the clip is there", "spec.start_seconds")
        spec = analyzer_pb2.AnalyzeSpec(
            sample_rate=rate,
            channels=min(facts.channels, 2),
            frames=frames,
            features=[analysis_pb2.FEATURE_EMBEDDING],
        )
        features = analysis_pb2.Features()
        try:
            async with (
                aclosing(stretch(path, start, frames)) as blocks,
                aclosing(self._listener.analyze(spec, blocks, priority=INTERACTIVE)) as responses,
            ):
                async for response in responses:
                    features.MergeFrom(response.features)
        except MediaError as error:
            raise invalid(error.reason, error.message, "chunk") from error
        except AnalyzerError as error:
            if error.reason == AnalyzerError.full:
                raise _too_many() from error
            if error.status is grpc.StatusCode.INVALID_ARGUMENT:  # samples of a million times full scale, say
                raise invalid(error.reason, error.message, "chunk") from error
            telemetry.log().warning("clip not analysed", reason=error.reason, status=error.status.name)
            raise ApiError(
                grpc.StatusCode.UNAVAILABLE,
                "ANALYZER_UNAVAILABLE",
                "the analyzer does not answer; try again",
                retry_after=2,
            ) from error
        except InferenceRefused as error:  # of samples beyond all measure
            raise invalid("NO_EMBEDDING", "the model cannot embed the clip", "chunk") from error
        except (ModelUnavailable, InferenceFailed) as error:
            telemetry.log().error("clip not embedded", error=str(error))  # it names files: not for callers
            message = "the model that embeds cannot be used at present"
            raise ApiError(grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE", message, retry_after=5) from error
        if not features.HasField("embedding"):
            reason, message = next(((one.reason, one.message) for one in features.unknown), ("", "it is unknown"))
            raise invalid("NO_EMBEDDING", f"what the clip sounds like cannot be told: {message}", "chunk", cause=reason)
        return features.embedding


def _too_many() -> ApiError:
    return ApiError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "TOO_MANY_CLIPS",
        "too many clips are being listened to; try again later",
        retry_after=5,
    )
