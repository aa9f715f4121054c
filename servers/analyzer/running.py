"""One analysis under way: its audio is read while its lanes work, each step in its turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from contrafact.engine.v1.analyzer_pb2 import (
    AnalyzeBlock,
    AnalyzeReport,
    AnalyzeRequest,
    AnalyzeResponse,
    AnalyzeSpec,
)
from contrafact.v1 import analysis_pb2

from servers.analyzer.analysis import CHUNK_SECONDS, Analysis, Feature, Lane, Samples
from servers.analyzer.incoming import Incoming
from servers.analyzer.messages import responses
from servers.analyzer.pitch import Method
from servers.analyzer.version import ANALYZER
from servers.platform.errors import ApiError, invalid
from servers.platform.slots import INTERACTIVE
from servers.platform.tasks import stopped, together
from servers.platform.turns import Turns

T = TypeVar("T")

_BLOCKS = 2  # that are read before they are needed
_RESPONSES = 2  # features whose messages wait to be sent
_PROGRESS_SECONDS = 1.0
# Mono audio at 22,050 Hz that waits for the slower lanes: of most songs all of it, so that a person sees the waveform
# after a fifth of the work.
_BACKLOG_SECONDS, _BACKLOG_SECONDS_OTHERWISE = 380, 45


@dataclass(frozen=True, slots=True)
class _End:
    """Of the responses, with what ended them if it was an error."""

    error: Exception | None


class Running:
    """Runs one analysis.

    The lane that takes in the stream goes before the others, which take in what it has kept for them as soon as a
    thread is free; while the first waits for audio, they go on.

    Args:
        spec: what to analyse; its rules must have been checked.
        priority: of its steps.
        turns: to make them.
    """

    def __init__(self, spec: AnalyzeSpec, priority: int, turns: Turns) -> None:
        self._spec, self._priority, self._turns = spec, priority, turns
        self._blocks: asyncio.Queue[AnalyzeBlock | ApiError | None] = asyncio.Queue(_BLOCKS)
        self._backlogs: list[asyncio.Queue[Samples | None]] = []
        self._responses: asyncio.Queue[list[AnalyzeResponse] | _End] = asyncio.Queue()
        self._room = asyncio.Semaphore(_RESPONSES)  # for responses, but not for the end, which nobody may wait for
        self._chunks_done = self._chunks = 0

    async def responses(self, requests: AsyncIterator[AnalyzeRequest]) -> AsyncGenerator[AnalyzeResponse, None]:
        """What there is to answer to ``requests``, which follow the spec; see the proto.

        Raises:
            ApiError: a request does not fit.
        """
        yield AnalyzeResponse(progress=0.0)
        working = asyncio.create_task(self._work(requests))
        try:
            while True:
                try:
                    async with asyncio.timeout(_PROGRESS_SECONDS):
                        messages = await self._responses.get()
                except TimeoutError:
                    yield AnalyzeResponse(progress=self.progress)
                    continue
                if isinstance(messages, _End):
                    break
                for message in messages:
                    yield message
                self._room.release()
            if messages.error is not None:
                raise messages.error
        finally:
            await stopped(working)

    @property
    def progress(self) -> float:
        """Share of the steps that take in audio that have been made, 0 to 1."""
        return self._chunks_done / max(1, self._chunks)

    async def _work(self, requests: AsyncIterator[AnalyzeRequest]) -> None:
        end = _End(None)
        try:
            await together(self._read(requests), self._analyze())
        except Exception as error:
            end = _End(error)
        self._responses.put_nowait(end)

    async def _analyze(self) -> None:
        analysis = await self._step(_analysis, self._spec, first=True)
        chunks, lanes = -(-self._spec.frames // analysis.chunk_frames), 1 + len(analysis.others)
        self._chunks = lanes * chunks + len(analysis.others)  # which take in the rest, too
        room = (_BACKLOG_SECONDS if self._priority == INTERACTIVE else _BACKLOG_SECONDS_OTHERWISE) // CHUNK_SECONDS
        self._backlogs = [asyncio.Queue(room) for _ in analysis.others]
        others = zip(analysis.others, self._backlogs, strict=True)
        await together(self._native(analysis), *(self._other(*other) for other in others))
        report = AnalyzeReport(analyzer=ANALYZER, cpu_seconds=analysis.cpu_seconds())
        await self._send([AnalyzeResponse(report=report)])

    async def _read(self, requests: AsyncIterator[AnalyzeRequest]) -> None:
        """Read ahead. What is out of place is told when all that came before it has been taken in."""
        async for request in requests:
            if request.HasField("spec"):
                await self._blocks.put(invalid("SPEC_REPEATED", "there is one spec, in the first message"))
                return
            if request.HasField("end"):
                await self._blocks.put(None)
                return
            await self._blocks.put(request.block)
        await self._blocks.put(invalid("STREAM_BROKEN", "the stream ended without an end message"))

    async def _native(self, analysis: Analysis) -> None:
        lane, incoming = analysis.native, Incoming(self._spec, analysis.chunk_frames)
        while (block := await self._blocks.get()) is not None:
            if isinstance(block, ApiError):
                raise block
            for chunk in await self._step(incoming.add, block, first=True):
                await self._keep(await self._step(lane.process, chunk, first=True))
                self._chunks_done += 1
        incoming.check_complete()
        await self._answer(lane, first=True)
        for found in analysis.too_low:
            await self._send(responses(found))
        await self._keep(await self._step(lane.rest, first=True))
        await self._keep(None)

    async def _keep(self, samples: Samples | None) -> None:
        for backlog in self._backlogs:
            await backlog.put(samples)

    async def _other(self, lane: Lane, backlog: asyncio.Queue[Samples | None]) -> None:
        while (samples := await backlog.get()) is not None:
            await self._step(lane.process, samples)
            self._chunks_done += 1
        await self._answer(lane)

    async def _answer(self, lane: Lane, first: bool = False) -> None:
        results = lane.results()

        def next_result() -> list[AnalyzeResponse] | None:
            found = next(results, None)
            return None if found is None else responses(found)

        while (messages := await self._step(next_result, first=first)) is not None:
            await self._send(messages)

    async def _send(self, messages: list[AnalyzeResponse]) -> None:
        """Send ``messages`` one after the other: no others come between the parts of a list."""
        await self._room.acquire()
        self._responses.put_nowait(messages)

    async def _step(self, work: Callable[..., T], *args: Any, first: bool = False) -> T:
        return await self._turns.step(self._priority, first, work, *args)


def _analysis(spec: AnalyzeSpec) -> Analysis:
    features = [Feature(analysis_pb2.Feature.Name(each).removeprefix("FEATURE_")) for each in spec.features]
    method: Method = "pyin" if spec.pitch_method == "pyin" else "swift-f0"
    return Analysis(spec.sample_rate, spec.channels, spec.frames, features, method)
