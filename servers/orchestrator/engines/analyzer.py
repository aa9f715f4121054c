"""The analyzer as an asynchronous stream: blocks in, features out as soon as they are known."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from typing import Any

import grpc
from contrafact.engine.v1 import analyzer_pb2, analyzer_pb2_grpc

from servers.media.blocks import Block
from servers.orchestrator.engines.calls import Call
from servers.orchestrator.engines.engine import Engine, EngineError, Feed, pieces
from servers.platform.settings import Settings
from servers.platform.slots import BACKGROUND

# An analysis waits for its audio, and for all that goes before it: this only ends what would never end.
_DEADLINE_SECONDS, _DEADLINE_FACTOR = 3600.0, 20.0


class AnalyzerError(EngineError):
    """The analyzer refused or failed; see :class:`EngineError`."""

    engine = "analyzer"
    full = "TOO_MANY_ANALYSES"
    stalled = "ANALYZER_STALLED"


class Analyzer(Engine):
    """A connection to the analyzer.

    Args:
        settings: where it is, how many analyses may be under way at once, how long one waits until it may begin.
        idle_seconds: an analyzer that owes something and gives no sign of life for so long has failed; so long it may
            take to come up, too.
    """

    error = AnalyzerError

    def __init__(self, settings: Settings, *, idle_seconds: float = 30.0) -> None:
        super().__init__(
            settings.analyzer_url, settings.analyses_in_flight, settings.analyzer_wait_seconds, idle_seconds
        )

    async def analyze(
        self, spec: analyzer_pb2.AnalyzeSpec, blocks: AsyncIterable[Block], *, priority: int = BACKGROUND
    ) -> AsyncGenerator[analyzer_pb2.AnalyzeResponse, None]:
        """Analyse ``blocks`` once there is room; memory does not grow with their length.

        Features of one pass over the audio come as soon as all of it was read, which a recording of up to six minutes
        is as fast as the waveform is made: what takes longer works on what was kept of it. When a person waits for the
        waveform of a longer one, analyse it twice at once: once for the features WAVEFORM, QUALITY, LOUDNESS and
        STEREO, and once for the others.

        Args:
            spec: what to analyse; see the proto. Its priority is replaced.
            blocks: consecutive blocks from frame 0 with the spec's rate and channels. Closing them remains the caller's
                business.
            priority: 1 goes before 2, here and in the analyzer, step by step.

        Yields:
            Features, each once, pieces of the waveform and of embeddings, and progress from time to time; last the
            report.

        Raises:
            ValueError: a block is not what the spec says, or they end too early.
            AnalyzerError: the analyzer refused, failed or is away.
            Exception: what ``blocks`` raises.
        """
        asked = analyzer_pb2.AnalyzeSpec()
        asked.CopyFrom(spec)
        asked.priority = priority
        feed = _Feed(asked, blocks)
        seconds = _DEADLINE_SECONDS + _DEADLINE_FACTOR * spec.frames / spec.sample_rate
        method = analyzer_pb2_grpc.AnalyzerServiceStub(self._channel).Analyze
        reported = False
        parts = analyzer_pb2.AnalyzeResponse()
        async with aclosing(self._exchange(method, seconds, feed, priority)) as responses:
            async for response in responses:
                reported = response.HasField("report")
                if parts.more and _features(response) != _features(parts):
                    raise AnalyzerError(grpc.StatusCode.UNKNOWN, "", "the parts of a feature did not come in a row")
                parts.MergeFrom(response)
                if not response.more:
                    parts.more = False
                    yield parts
                    parts = analyzer_pb2.AnalyzeResponse()
        if not reported:
            raise AnalyzerError(grpc.StatusCode.UNKNOWN, "", "the analysis ended without a report")

    async def _admitted(self, call: Call, feed: Any) -> None:
        await self._first_answer(call, analyzer_pb2.AnalyzeRequest(spec=feed.spec))  # its progress, which is none


def _features(response: analyzer_pb2.AnalyzeResponse) -> list[str]:
    """Names of the features in it."""
    return [field.name for field, _ in response.features.ListFields()]


class _Feed(Feed):
    """Writes the blocks of one analysis to its call."""

    def __init__(self, spec: analyzer_pb2.AnalyzeSpec, blocks: AsyncIterable[Block]) -> None:
        super().__init__()
        self.spec, self._blocks = spec, blocks

    async def _run(self) -> None:
        async with aclosing(pieces(self.spec, self._blocks)) as parts:
            async for start, samples in parts:
                block = analyzer_pb2.AnalyzeBlock(start=start, samples=samples)
                await self._write(analyzer_pb2.AnalyzeRequest(block=block))
        await self._write(analyzer_pb2.AnalyzeRequest(end=analyzer_pb2.AnalyzeEnd()))
