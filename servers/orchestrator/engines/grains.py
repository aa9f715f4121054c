"""The grains engine as asynchronous streams: a sound into a library, a stem into notes, notes into audio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
import numpy as np
from contrafact.engine.v1 import grains_pb2 as pb
from contrafact.engine.v1 import grains_pb2_grpc
from google.protobuf.message import Message

from servers.grains import messages
from servers.media.blocks import Block
from servers.orchestrator.engines.calls import Call
from servers.orchestrator.engines.engine import Engine, EngineError, Feed, pieces
from servers.platform.settings import Settings
from servers.platform.slots import BACKGROUND, Slots

# Work waits for its audio, and for all that goes before it: this only ends what would never end.
_DEADLINE_SECONDS, _DEADLINE_FACTOR = 3600.0, 20.0
_FLOAT = np.dtype("<f4")

Spec = TypeVar("Spec", pb.BuildSpec, pb.TraceSpec, pb.RenderSpec)


class GrainsError(EngineError):
    """The grains engine refused or failed; see :class:`EngineError`."""

    engine = "grains"
    full = "TOO_MANY_CALLS"
    stalled = "GRAINS_STALLED"


class Grains(Engine):
    """A connection to the grains engine.

    What all of its streams have in common: priority 1 goes before 2, here and in the engine, step by step; memory does
    not grow with the length of what is played; closing what is read remains the caller's business. All raise
    GrainsError if the engine refused, failed or is away, and what the stream raises that is read.

    Args:
        settings: where it is, how many renderings, and how many other calls, may be under way at once, how long one
            waits until it may begin.
        idle_seconds: an engine that owes something and gives no sign of life for so long has failed; so long it may
            take to come up, too.
    """

    error = GrainsError

    def __init__(self, settings: Settings, *, idle_seconds: float = 30.0) -> None:
        super().__init__(settings.grains_url, settings.grains_in_flight, settings.grains_wait_seconds, idle_seconds)
        # A rendering that is under way may wait for a trace to begin: they must not take each other's room.
        self._renders = Slots("grains_renders", settings.grains_in_flight)

    async def build(
        self, spec: pb.BuildSpec, blocks: AsyncIterable[Block], *, priority: int = BACKGROUND
    ) -> AsyncGenerator[pb.BuildResponse, None]:
        """Cut ``blocks`` into a grain library.

        Args:
            spec: the sound, and how to cut it; see the proto. Its priority is replaced.
            blocks: consecutive blocks from frame 0 with the spec's rate and channels.
            priority: 1 or 2.

        Yields:
            Progress from time to time, then the pieces of the library, then the preview, last the report.

        Raises:
            ValueError: a block is not what the spec says, or they end too early.
        """
        feed = _Audio(_with(spec, priority), blocks, pb.BuildRequest)
        async with aclosing(self._call("Build", feed, priority)) as responses:
            async for response in responses:
                yield response

    async def trace(
        self, spec: pb.TraceSpec, blocks: AsyncIterable[Block], *, priority: int = BACKGROUND
    ) -> AsyncGenerator[pb.NoteBatch | pb.TraceReport, None]:
        """Find what is played in ``blocks``.

        Args:
            spec: the stem; see the proto. Its priority is replaced.
            blocks: consecutive blocks from frame 0 with the spec's rate and channels.
            priority: 1 or 2.

        Yields:
            Notes in order, also batches of none that only say how far it came; last the report.

        Raises:
            ValueError: a block is not what the spec says, or they end too early.
        """
        feed, until = _Audio(_with(spec, priority), blocks, pb.TraceRequest), 0
        async with aclosing(self._call("Trace", feed, priority)) as responses:
            async for response in responses:
                if response.HasField("report"):
                    yield response.report
                elif response.notes.notes or response.notes.until > until:  # else it is a sign of life
                    until = response.notes.until
                    yield response.notes

    async def render(
        self,
        spec: pb.RenderSpec,
        library: Callable[[], Awaitable[bytes]],
        batches: AsyncIterable[pb.NoteBatch],
        *,
        priority: int = BACKGROUND,
    ) -> AsyncGenerator[Block | pb.RenderReport, None]:
        """Play notes with grains.

        Args:
            spec: what is played, and how; see the proto. Its priority is replaced.
            library: gives the bytes of the library. Awaited only if the engine does not have it.
            batches: notes in order, in batches of any size, as ``trace`` gives them. Read when the engine has the
                library.
            priority: 1 or 2.

        Yields:
            Audio in order, in small blocks, ``spec.frames`` in all; last the report.
        """
        feed = _Notes(_with(spec, priority), library, batches)
        async with aclosing(self._call("Render", feed, priority, self._renders)) as responses:
            async for response in responses:
                if response.HasField("report"):
                    yield response.report
                elif response.block.samples:  # else it is a sign of life
                    samples = np.frombuffer(response.block.samples, _FLOAT).reshape(spec.channels, -1)
                    yield Block(samples.astype(np.float32, copy=False), spec.sample_rate, response.block.start)

    async def _call(
        self, name: str, feed: _Audio | _Notes, priority: int, slots: Slots | None = None
    ) -> AsyncGenerator[Any, None]:
        method = getattr(grains_pb2_grpc.GrainsServiceStub(self._channel), name)
        seconds = _DEADLINE_SECONDS + _DEADLINE_FACTOR * feed.spec.frames / feed.spec.sample_rate
        reported = False
        async with aclosing(self._exchange(method, seconds, feed, priority, slots)) as responses:
            async for response in responses:
                reported = response.HasField("report")
                yield response
        if not reported:
            raise GrainsError(grpc.StatusCode.UNKNOWN, "", f"{name} ended without a report")

    async def _admitted(self, call: Call, feed: Any) -> None:
        feed.welcomed(await self._first_answer(call, feed.request(spec=feed.spec)))


class _Audio(Feed):
    """Writes the blocks of one sound or stem to its call."""

    def __init__(self, spec: Any, blocks: AsyncIterable[Block], request: Callable[..., Message]) -> None:
        super().__init__()
        self.spec, self.request, self._blocks = spec, request, blocks

    def welcomed(self, answer: Any) -> None:
        """The engine took it on, and said nothing else."""

    async def _run(self) -> None:
        async with aclosing(pieces(self.spec, self._blocks)) as parts:
            async for start, samples in parts:
                await self._write(self.request(block=pb.GrainsBlock(start=start, samples=samples)))
        await self._write(self.request(end=pb.GrainsEnd()))


class _Notes(Feed):
    """Writes the library to its call, if that is wanted, and then notes."""

    request = pb.RenderRequest

    def __init__(
        self, spec: pb.RenderSpec, library: Callable[[], Awaitable[bytes]], batches: AsyncIterable[pb.NoteBatch]
    ) -> None:
        super().__init__()
        self.spec, self._library, self._batches = spec, library, batches
        self._wanted = False

    def welcomed(self, answer: pb.RenderResponse) -> None:
        """The engine took it on, and said whether it wants the library."""
        self._wanted = answer.ready.library_wanted

    async def _run(self) -> None:
        await self._begun()
        if self._wanted:
            for piece in messages.pieces(await self._library()):
                await self._write(pb.RenderRequest(library=piece))
        async for batch in self._batches:
            for part in messages.batches(batch.notes, batch.until):
                await self._write(pb.RenderRequest(notes=part))
        await self._write(pb.RenderRequest(end=pb.GrainsEnd()))


def _with(spec: Spec, priority: int) -> Spec:
    """The same, with this priority."""
    changed = type(spec)()
    changed.CopyFrom(spec)
    changed.priority = priority
    return changed
