"""What the clients of our engines share: room for a call, a call that is not refused, and a watch over it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

import grpc
import numpy as np
from google.protobuf.message import Message

from servers.media.blocks import BLOCK_FRAMES, Block
from servers.orchestrator.engines.calls import Call, CallEnded, error_of
from servers.platform import telemetry
from servers.platform.server import CHANNEL_OPTIONS
from servers.platform.slots import Slots
from servers.platform.tasks import to_the_end

_AGAIN_SECONDS, _AGAIN_AT_MOST = 0.5, 5.0
_FLOAT = np.dtype("<f4")


class EngineError(Exception):
    """An engine refused or failed.

    Attributes:
        status: the gRPC status.
        reason: UPPER_SNAKE_CASE, as the proto names it; the engine's ``full`` if it, or what this process may use of
            it, was full for too long; its ``stalled`` if it took nothing and gave nothing for too long; "" if it could
            not say (it is gone, for example).
        message: a sentence for people.
    """

    engine: ClassVar[str]
    full: ClassVar[str]
    stalled: ClassVar[str]

    def __init__(self, status: grpc.StatusCode, reason: str, message: str) -> None:
        super().__init__(f"{self.engine}: {reason or status.name}: {message}")
        self.status, self.reason, self.message = status, reason, message


class StreamSpec(Protocol):
    """What a message says of a stream of audio."""

    sample_rate: int
    channels: int
    frames: int


async def pieces(spec: StreamSpec, blocks: AsyncIterable[Block]) -> AsyncGenerator[tuple[int, bytes], None]:
    """The first frame and the samples of each piece of ``blocks`` that is small enough to be sent.

    Raises:
        ValueError: a block is not what the spec says, or they end too early.
        Exception: what ``blocks`` raises.
    """
    position = 0
    async for block in blocks:
        if (block.sample_rate, block.channels) != (spec.sample_rate, spec.channels):
            raise ValueError(f"{block.channels} channels of {block.sample_rate} Hz are not what was announced")
        for offset in range(0, block.frames, BLOCK_FRAMES):
            part = block.samples[:, offset : offset + BLOCK_FRAMES].astype(_FLOAT, copy=False)
            yield block.start + offset, part.tobytes()
        position = block.end
    if position < spec.frames:
        raise ValueError(f"the blocks ended after {position} of {spec.frames} frames")


class Feed(ABC):
    """Writes what one call is to hear; before there is a call, it may begin to read what it will write.

    Attributes:
        writing_since: since when the engine is to take a message, by the clock of the event loop; None: it is not.
    """

    def __init__(self) -> None:
        self.writing_since: float | None = None
        self._call: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
        self._lock = asyncio.Lock()

    def begin(self, call: Call) -> None:
        """Write to ``call``."""
        self._call.set_result(call)

    async def run(self) -> None:
        """Write all there is; return early if the call ends, which its reader hears of."""
        with contextlib.suppress(CallEnded):
            await self._run()
            self._call.result().done_writing()

    @abstractmethod
    async def _run(self) -> None:
        """Write all there is."""

    async def _begun(self) -> Call:
        """Wait for the call."""
        return await asyncio.shield(self._call)  # which is not to be cancelled with one who waits for it

    async def _write(self, request: Message) -> None:
        async with self._lock:
            call = await self._begun()
            self.writing_since = asyncio.get_running_loop().time()
            try:
                await call.write(request)
            finally:
                self.writing_since = None


class Engine(ABC):
    """A connection to an engine.

    Args:
        url: where it is.
        in_flight: how many calls may be under way at once.
        wait_seconds: for so long one waits until it may begin.
        idle_seconds: an engine that owes something and moves nothing for so long has failed; so long it may take to
            come up, too.
    """

    error: ClassVar[type[EngineError]]

    def __init__(self, url: str, in_flight: int, wait_seconds: float, idle_seconds: float) -> None:
        self._url, self._wait_seconds, self._idle_seconds = url, wait_seconds, idle_seconds
        self._slots = Slots(self.error.engine, in_flight)
        self._channel: grpc.Channel

    async def __aenter__(self) -> Self:
        self._channel = grpc.insecure_channel(self._url, options=CHANNEL_OPTIONS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._channel.close)

    @abstractmethod
    async def _admitted(self, call: Call, feed: Any) -> None:
        """Return when the engine has taken ``call`` on. Raises grpc.RpcError if it refuses."""

    async def _first_answer(self, call: Call, request: Message) -> Any:
        """What comes back of the first ``request``. Raises grpc.RpcError, and EngineError if nothing comes."""
        try:
            async with asyncio.timeout(self._idle_seconds):
                with contextlib.suppress(CallEnded):
                    await call.write(request)
                return await call.read()  # raises what ended it
        except TimeoutError:
            raise self._stalled() from None

    async def _exchange(
        self, method: Any, seconds: float, feed: Feed, priority: int, slots: Slots | None = None
    ) -> AsyncGenerator[Any, None]:
        """Call ``method`` once there is room, with ``feed`` to write; yield the responses.

        Args:
            method: a stream-stream method of a stub on the channel.
            seconds: deadline of the call.
            feed: writes the requests.
            priority: 1 begins before 2 when both wait for room.
            slots: the room, if it is another than that of most calls.

        Raises:
            EngineError: the engine refused, failed or is away.
            Exception: what ``feed`` raises.
        """
        give_up = asyncio.get_running_loop().time() + self._wait_seconds
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout_at(give_up):
                    await held.enter_async_context((slots or self._slots).hold(priority))
            except TimeoutError:
                message = f"others left no room for {self._wait_seconds:g} s"
                raise self.error(grpc.StatusCode.RESOURCE_EXHAUSTED, self.error.full, message) from None
            feeding = asyncio.create_task(feed.run())
            reading: asyncio.Task[Any] | None = None
            call: Call | None = None
            try:
                call = await self._accepted(method, seconds, feed, feeding, give_up)
                feed.begin(call)
                while True:
                    reading = asyncio.create_task(call.read())
                    response = await self._answer(reading, feeding, feed)
                    if response is None:
                        break
                    yield response
            except grpc.RpcError as error:
                raise self.error(*error_of(error)) from error
            finally:
                await to_the_end(_ended(call, feeding, reading))

    async def _accepted(
        self, method: Any, seconds: float, feed: Feed, feeding: asyncio.Task[None], give_up: float
    ) -> Call:
        """A call that the engine, which other processes use too, does not refuse because it is full."""
        pause = _AGAIN_SECONDS
        while True:
            call = Call(method, seconds, telemetry.outgoing_headers())
            try:
                await self._admitted(call, feed)
                return call
            except BaseException as error:
                await to_the_end(call.close())
                full = isinstance(error, grpc.RpcError) and error_of(error)[1] == self.error.full
                if not full or asyncio.get_running_loop().time() > give_up:
                    raise
            if feeding.done():
                feeding.result()
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, _AGAIN_AT_MOST)

    async def _answer(self, reading: asyncio.Task[Any], feeding: asyncio.Task[None], feed: Feed) -> Any:
        """What ``reading`` reads, unless the feeding fails or nothing moves."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while True:
            if feeding.done():
                feeding.result()
            # While an input pauses, the engine owes nothing: it is given its time anew when a write begins.
            since = begun if feeding.done() else feed.writing_since
            wait = self._idle_seconds if since is None else max(begun, since) + self._idle_seconds - loop.time()
            if wait <= 0:
                raise self._stalled()
            waiting = {reading} if feeding.done() else {reading, feeding}
            done, _ = await asyncio.wait(waiting, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            if reading in done:
                return reading.result()
            if feeding in done:
                begun = loop.time()

    def _stalled(self) -> EngineError:
        message = f"nothing moved for {self._idle_seconds:g} s"
        return self.error(grpc.StatusCode.DEADLINE_EXCEEDED, self.error.stalled, message)


async def _ended(call: Call | None, *tasks: asyncio.Task[Any] | None) -> None:
    """End what belongs to a call."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    if call is not None:
        await call.close()
    await asyncio.gather(*running, return_exceptions=True)
