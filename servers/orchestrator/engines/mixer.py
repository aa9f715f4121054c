"""The mixer as an asynchronous stream: many streams of blocks in, one out."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from contrafact.engine.v1 import mixer_pb2, mixer_pb2_grpc
from numpy.typing import NDArray

from servers.media.blocks import BLOCK_FRAMES, Block
from servers.orchestrator.engines.calls import Call, CallEnded, error_of
from servers.platform import telemetry
from servers.platform.server import CHANNEL_OPTIONS
from servers.platform.settings import Settings
from servers.platform.slots import BACKGROUND, Slots
from servers.platform.tasks import to_the_end, together

_MAX_READ_AHEAD_FRAMES = 4_194_304  # the server's own bound
# A mix takes as long as its slowest input: this only ends what would never end.
_DEADLINE_SECONDS, _DEADLINE_FACTOR = 3600.0, 20.0
_REFUSAL_SECONDS = 0.25  # a mixer that is full says so at once
_AGAIN_SECONDS, _AGAIN_AT_MOST = 0.5, 5.0
_FULL = "TOO_MANY_MIXES"
_FLOAT = np.dtype("<f4")


class MixerError(Exception):
    """The mixer refused or failed.

    Attributes:
        status: the gRPC status.
        reason: UPPER_SNAKE_CASE, as the proto names it; TOO_MANY_MIXES if it, or what this process may use of it, was
            full for too long; MIXER_STALLED if it took nothing and gave nothing for too long; "" if it could not say
            (it is gone, for example).
        message: a sentence for people.
    """

    def __init__(self, status: grpc.StatusCode, reason: str, message: str) -> None:
        super().__init__(f"mixer: {reason or status.name}: {message}")
        self.status, self.reason, self.message = status, reason, message


class Mixer:
    """A connection to the mixer.

    Args:
        settings: where it is, how many mixes may be under way at once, how long one waits until it may begin.
        idle_seconds: a mixer that owes something and moves nothing for so long has failed; so long it may take to
            come up, too.
        read_ahead_seconds: no input is read further ahead of the slowest one. It must be more than what an input's
            producer takes in of another input before it gives anything, or both wait for each other; at most 60.
    """

    def __init__(self, settings: Settings, *, idle_seconds: float = 30.0, read_ahead_seconds: float = 30.0) -> None:
        self._url = settings.mixer_url
        self._idle_seconds, self._read_ahead_seconds = idle_seconds, read_ahead_seconds
        self._wait_seconds = settings.mixer_wait_seconds
        self._slots = Slots("mixer", settings.mixes_in_flight)
        self._channel: grpc.Channel

    async def __aenter__(self) -> Self:
        self._channel = grpc.insecure_channel(self._url, options=CHANNEL_OPTIONS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._channel.close)

    async def mix(
        self, spec: mixer_pb2.MixSpec, inputs: Mapping[str, AsyncIterable[Block]], *, priority: int = BACKGROUND
    ) -> AsyncGenerator[Block | mixer_pb2.MixReport, None]:
        """Mix ``inputs``, read concurrently, once there is room; memory does not grow with their length.

        Args:
            spec: what to mix; see the proto.
            inputs: for each input of the spec, consecutive blocks from frame 0 with the spec's rate and channels.
                Closing them remains the caller's business.
            priority: 1 begins before 2 when both wait for room.

        Yields:
            The mix in order, in blocks of at most half a second, ``spec.frames`` in all; last the report.

        Raises:
            ValueError: the inputs are not those of the spec, or a block is not.
            MixerError: the mixer refused, failed or is away.
            Exception: what an input raises.
        """
        if {asked.name for asked in spec.inputs} != set(inputs):
            raise ValueError(f"inputs {sorted(inputs)} are not those of the spec")
        give_up = asyncio.get_running_loop().time() + self._wait_seconds
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout_at(give_up):
                    await held.enter_async_context(self._slots.hold(priority))
            except TimeoutError:
                message = f"other mixes left no room for {self._wait_seconds:g} s"
                raise MixerError(grpc.StatusCode.RESOURCE_EXHAUSTED, _FULL, message) from None
            feed = _Feed(spec, self._read_ahead_seconds)
            feeding = asyncio.create_task(feed.run(inputs))
            reading: asyncio.Task[Any] | None = None
            call: Call | None = None
            report = None
            try:
                call = await self._accepted(spec, feeding, give_up)
                feed.begin(call)
                while True:
                    reading = asyncio.create_task(call.read())
                    response = await self._answer(reading, feeding, feed)
                    if response is None:
                        break
                    if response.HasField("report"):
                        report = response.report
                        continue
                    samples = np.frombuffer(response.block.samples, _FLOAT).reshape(spec.channels, -1)
                    yield Block(samples.astype(np.float32, copy=False), spec.sample_rate, response.block.start)
                if report is None:
                    raise MixerError(grpc.StatusCode.UNKNOWN, "", "the mix ended without a report")
                yield report
            except grpc.RpcError as error:
                raise MixerError(*error_of(error)) from error
            finally:
                await to_the_end(_ended(call, feeding, reading))

    async def _accepted(self, spec: mixer_pb2.MixSpec, feeding: asyncio.Task[None], give_up: float) -> Call:
        """A call that the mixer, which other workers use too, does not refuse because it is full."""
        pause = _AGAIN_SECONDS
        while True:
            call = Call(
                mixer_pb2_grpc.MixerServiceStub(self._channel).Mix,
                _DEADLINE_SECONDS + _DEADLINE_FACTOR * spec.frames / spec.sample_rate,
                telemetry.outgoing_headers(),
            )
            try:
                if await call.ended(within=_REFUSAL_SECONDS):
                    await call.read()  # raises what ended it
                return call
            except BaseException as error:
                await to_the_end(call.close())
                full = isinstance(error, grpc.RpcError) and error_of(error)[1] == _FULL
                if not full or asyncio.get_running_loop().time() > give_up:
                    raise
            if feeding.done():
                feeding.result()
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, _AGAIN_AT_MOST)

    async def _answer(self, reading: asyncio.Task[Any], feeding: asyncio.Task[None], feed: _Feed) -> Any:
        """What ``reading`` reads, unless the feeding fails or nothing moves."""
        while True:
            if feeding.done():
                feeding.result()
            written = feed.written
            waiting = {reading} if feeding.done() else {reading, feeding}
            done, _ = await asyncio.wait(waiting, timeout=self._idle_seconds, return_when=asyncio.FIRST_COMPLETED)
            if reading in done:
                return reading.result()
            if not done and (feeding.done() or (feed.writing and feed.written == written)):
                message = f"nothing moved for {self._idle_seconds:g} s"
                raise MixerError(grpc.StatusCode.DEADLINE_EXCEEDED, "MIXER_STALLED", message)


class _Feed:
    """Writes the inputs of one mix to its call, none of them too far ahead; before there is one, it begins to read."""

    def __init__(self, spec: mixer_pb2.MixSpec, read_ahead_seconds: float) -> None:
        self.written = 0  # messages
        self._spec = spec
        self._call: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
        self._read_ahead = max(1, min(round(read_ahead_seconds * spec.sample_rate), _MAX_READ_AHEAD_FRAMES))
        self._positions = [0] * len(spec.inputs)
        self._moved = asyncio.Condition()
        self._lock = asyncio.Lock()

    @property
    def writing(self) -> bool:
        """Whether the mixer is to take something now."""
        return self._lock.locked()

    def begin(self, call: Call) -> None:
        """Write to ``call``."""
        self._call.set_result(call)

    async def run(self, inputs: Mapping[str, AsyncIterable[Block]]) -> None:
        """Write all there is; return early if the call ends, which its reader hears of."""
        with contextlib.suppress(CallEnded):
            await together(
                self._write(mixer_pb2.MixRequest(spec=self._spec)),  # tasks begin in order, so this is written first
                *(self._input(place, inputs[asked.name]) for place, asked in enumerate(self._spec.inputs)),
            )
            await self._write(mixer_pb2.MixRequest(end=mixer_pb2.MixEnd()))
            self._call.result().done_writing()

    async def _input(self, place: int, blocks: AsyncIterable[Block]) -> None:
        name, spec = self._spec.inputs[place].name, self._spec
        most = min(BLOCK_FRAMES, self._read_ahead)
        async for block in blocks:
            if (block.sample_rate, block.channels) != (spec.sample_rate, spec.channels):
                raise ValueError(
                    f"{name}: {block.channels} channels of {block.sample_rate} Hz are not what was announced"
                )
            for offset in range(0, block.frames, most):
                part = block.samples[:, offset : offset + most]
                await self._part(place, block.start + offset, part)
        if self._positions[place] < spec.frames:
            # The others would wait for it.
            raise ValueError(f"{name}: ended after {self._positions[place]} of {spec.frames} frames")

    async def _part(self, place: int, start: int, samples: NDArray[np.float32]) -> None:
        end = start + samples.shape[1]
        async with self._moved:
            await self._moved.wait_for(lambda: end - min(self._positions) <= self._read_ahead)
        data = samples.astype(_FLOAT, copy=False).tobytes()
        block = mixer_pb2.InputBlock(input=place, start=start, samples=data)
        await self._write(mixer_pb2.MixRequest(block=block))
        async with self._moved:
            self._positions[place] = end
            self._moved.notify_all()

    async def _write(self, request: mixer_pb2.MixRequest) -> None:
        async with self._lock:
            call = await asyncio.shield(self._call)  # which is not to be cancelled with one who waits for it
            await call.write(request)
            self.written += 1


async def _ended(call: Call | None, *tasks: asyncio.Task[Any] | None) -> None:
    """End what belongs to a mix."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    if call is not None:
        await call.close()
    await asyncio.gather(*running, return_exceptions=True)
