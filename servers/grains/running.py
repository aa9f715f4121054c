"""Calls under way: what comes in is taken in as far as what comes out is read, all work is done step by step."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import numpy as np
from contrafact.engine.v1 import grains_pb2 as pb

from servers.grains import messages
from servers.grains.building import CannotCut, build
from servers.grains.incoming import Order, Upload
from servers.grains.libraries import Libraries, Place
from servers.grains.library import InvalidLibrary, Library, decoded, encode
from servers.grains.notes import Notes, no_notes, to_messages
from servers.grains.preview import preview
from servers.grains.rendering import Rendering
from servers.grains.trace import TRACE_VERSION, Tracing
from servers.media.received import Received, Samples
from servers.platform.errors import invalid
from servers.platform.slots import Slots
from servers.platform.tasks import to_the_end
from servers.platform.turns import Turns

T = TypeVar("T")

MAX_BUILDS = 4
"""At once. Each holds its sound and what is cut out of it, at most 461 MB each: 20 minutes at 48 kHz in stereo."""
MAX_UPLOADS = 4
"""Libraries that are received and decoded at once. Each is held as it was sent, and decoded."""
STEP_FRAMES = 16_384
"""The most that is traced or played in a step."""
SIGN_SECONDS = 1.0
"""When nothing else was to be said for so long, a sign of life is given."""


class Shared:
    """What all calls share.

    Args:
        turns: to do steps.
        library_bytes: that libraries may take which are kept.
    """

    def __init__(self, turns: Turns, library_bytes: int) -> None:
        self.turns, self.libraries = turns, Libraries(library_bytes)
        self.builds, self.uploads = Slots("grain_builds", MAX_BUILDS), Slots("grain_uploads", MAX_UPLOADS)


class Running(ABC):
    """A call under way.

    Args:
        spec: what it is about; its rules must have been checked.
        priority: of its steps.
        shared: what all calls share.
    """

    def __init__(self, spec: Any, priority: int, shared: Shared) -> None:
        self._spec, self._priority, self._shared = spec, priority, shared

    async def responses(self, requests: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        """What there is to answer to ``requests``, which follow the spec; see the proto.

        Raises:
            ApiError: a request does not fit.
        """
        async with aclosing(self._work(_between(requests))) as work:
            while True:
                coming = asyncio.ensure_future(anext(work, None))
                try:
                    while not (await asyncio.wait([coming], timeout=SIGN_SECONDS))[0]:
                        yield self._sign()
                finally:
                    coming.cancel()
                    await to_the_end(_ended(coming))
                response = coming.result()
                if response is None:
                    return
                yield response

    @abstractmethod
    def _work(self, requests: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        """All answers but for signs of life; the first, that the work was taken on, at once."""

    @abstractmethod
    def _sign(self) -> Any:
        """A sign of life."""

    async def _step(self, work: Callable[..., T], *args: Any) -> T:
        return await self._shared.turns.step(self._priority, False, work, *args)


class Building(Running):
    """A library that is built."""

    _progress = 0.0

    async def _work(self, requests: AsyncIterator[Any]) -> AsyncGenerator[pb.BuildResponse, None]:
        yield self._sign()
        async with self._shared.builds.hold(self._priority):
            report, data, heard = await self._built(requests)
        for piece in messages.pieces(data):
            yield pb.BuildResponse(library=piece)
        for block in messages.audio(0, heard):
            yield pb.BuildResponse(preview=block)
        yield pb.BuildResponse(report=report)

    async def _built(self, requests: AsyncIterator[Any]) -> tuple[pb.BuildReport, bytes, Samples]:
        spec = self._spec
        received, samples = Received(spec.channels, spec.frames), np.empty((spec.channels, spec.frames), np.float32)

        def take(block: pb.GrainsBlock) -> None:
            part = received.block(block.start, block.samples)
            samples[:, block.start : block.start + part.shape[1]] = part

        def work(pause: Callable[[], None]) -> tuple[pb.BuildReport, bytes, Samples]:
            def progress(share: float) -> None:
                self._progress = share
                pause()

            library = build(samples, spec.sample_rate, spec.cut, progress)
            return messages.build_report(library), encode(library, pause), preview(library)

        async for request in requests:
            await self._step(take, request.block)
        received.check_complete()
        try:
            return await self._shared.turns.steps(self._priority, work)
        except CannotCut as error:
            raise invalid(error.reason, str(error)) from error

    def _sign(self) -> pb.BuildResponse:
        return pb.BuildResponse(progress=self._progress)


class Following(Running):
    """A stem that is traced."""

    _until = 0

    async def _work(self, requests: AsyncIterator[Any]) -> AsyncGenerator[pb.TraceResponse, None]:
        yield self._sign()
        spec, report = self._spec, pb.TraceReport(version=TRACE_VERSION)
        received = Received(spec.channels, spec.frames)
        tracing = await self._step(Tracing, spec.sample_rate, spec.channels, spec.frames)

        def take(block: pb.GrainsBlock) -> list[Samples]:
            samples = received.block(block.start, block.samples)
            return np.array_split(samples, range(STEP_FRAMES, samples.shape[1], STEP_FRAMES), axis=1)

        def told(notes: Notes, until: int) -> list[pb.NoteBatch]:
            report.notes += len(notes)
            report.pitched += int(np.count_nonzero(notes.pitches))
            return list(messages.batches(to_messages(notes), until))

        def follow(samples: Samples) -> list[pb.NoteBatch]:
            notes = tracing.process(samples)
            return told(notes, tracing.until) if tracing.until > self._until else []

        async for request in requests:
            for part in await self._step(take, request.block):
                for batch in await self._step(follow, part):
                    self._until = batch.until
                    yield pb.TraceResponse(notes=batch)
        received.check_complete()
        for batch in await self._step(lambda: told(tracing.finish(), spec.frames)):
            yield pb.TraceResponse(notes=batch)
        yield pb.TraceResponse(report=report)

    def _sign(self) -> pb.TraceResponse:
        return pb.TraceResponse(notes=pb.NoteBatch(until=self._until))


class Playing(Running):
    """Notes that are played."""

    async def _work(self, requests: AsyncIterator[pb.RenderRequest]) -> AsyncGenerator[pb.RenderResponse, None]:
        with self._shared.libraries.place(self._spec.library_sha256) as place:
            wanted = place.library is None
            yield pb.RenderResponse(ready=pb.RenderReady(library_wanted=wanted))
            library = place.library or await self._uploaded(requests, place)
            rendering, order = await self._step(Rendering, library, self._spec), Order(self._spec.frames)
            async for request in requests:
                if request.HasField("library"):
                    message = "there is one library, and none if it is not wanted"
                    raise Upload.wrong(message) if wanted else invalid("UNEXPECTED_DATA", message, "library")
                for part in await self._step(order.notes, request.notes):
                    async for response in self._played(rendering, *part):
                        yield response
            async for response in self._played(rendering, no_notes(), self._spec.frames):
                yield response
            yield pb.RenderResponse(report=rendering.report())

    async def _uploaded(self, requests: AsyncIterator[pb.RenderRequest], place: Place) -> Library:
        upload = Upload(self._spec.library_sha256, self._spec.library_bytes)

        async def load() -> Library:
            stored = await self._step(upload.library)
            return await self._shared.turns.steps(self._priority, lambda pause: decoded(stored, pause))

        async with self._shared.uploads.hold(self._priority):
            while not upload.complete and (request := await anext(requests, None)) is not None:
                if not request.HasField("library"):
                    raise invalid("UNEXPECTED_DATA", "notes follow the library", "notes")
                # Another call may have brought it meanwhile.
                upload.add(request.library, keep=place.library is None)
            upload.check_complete()
            try:
                return await place.filled(load)
            except InvalidLibrary as error:
                raise Upload.wrong(str(error)) from error

    async def _played(self, rendering: Rendering, notes: Notes, until: int) -> AsyncGenerator[pb.RenderResponse, None]:
        """What notes make ready, a piece in each step."""

        def play(notes: Notes) -> list[pb.RenderResponse]:
            start = rendering.position
            samples = rendering.add(notes, min(until, start + STEP_FRAMES))
            return [pb.RenderResponse(block=block) for block in messages.audio(start, samples)]

        while len(notes) or rendering.position < until:
            for response in await self._step(play, notes):
                yield response
            notes = no_notes()

    def _sign(self) -> pb.RenderResponse:
        return pb.RenderResponse(block=pb.GrainsBlock())


async def _ended(task: asyncio.Future[Any]) -> None:
    """Wait for a task, whatever becomes of it."""
    await asyncio.gather(task, return_exceptions=True)


async def _between(requests: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    """What comes between the spec and the end.

    Raises:
        ApiError: another spec comes, or no end.
    """
    async for request in requests:
        if request.HasField("spec"):
            raise invalid("SPEC_REPEATED", "there is one spec, in the first message")
        if request.HasField("end"):
            return
        yield request
    raise invalid("STREAM_BROKEN", "the stream ended without an end message")
