"""The mixer as an asynchronous stream: many streams of blocks in, one out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from contextlib import aclosing
from typing import Any

import grpc
import numpy as np
from contrafact.engine.v1 import mixer_pb2, mixer_pb2_grpc
from numpy.typing import NDArray

from servers.media.blocks import BLOCK_FRAMES, Block
from servers.mixer.placing import placements, read_ahead_frames
from servers.orchestrator.engines.calls import Call
from servers.orchestrator.engines.engine import Engine, EngineError, Feed
from servers.platform.settings import Settings
from servers.platform.slots import BACKGROUND
from servers.platform.tasks import together

# A mix takes as long as its slowest input: this only ends what would never end.
_DEADLINE_SECONDS, _DEADLINE_FACTOR = 3600.0, 20.0
_FLOAT = np.dtype("<f4")


class MixerError(EngineError):
    """The mixer refused or failed; see :class:`EngineError`."""

    engine = "mixer"
    full = "TOO_MANY_MIXES"
    stalled = "MIXER_STALLED"


class Mixer(Engine):
    """A connection to the mixer.

    Args:
        settings: where it is, how many mixes may be under way at once, how long one waits until it may begin.
        idle_seconds: a mixer that owes something and moves nothing for so long has failed; so long it may take to
            come up, too.
        read_ahead_seconds: no input is read further ahead of the slowest one, in seconds of the mix. It must be more
            than what an input's producer takes in of another input before it gives anything, or both wait for each
            other; at most 60, and less for more than 16 inputs (see the proto).
    """

    error = MixerError

    def __init__(self, settings: Settings, *, idle_seconds: float = 30.0, read_ahead_seconds: float = 30.0) -> None:
        super().__init__(settings.mixer_url, settings.mixes_in_flight, settings.mixer_wait_seconds, idle_seconds)
        self._read_ahead_seconds = read_ahead_seconds

    async def mix(
        self, spec: mixer_pb2.MixSpec, inputs: Mapping[str, AsyncIterable[Block]], *, priority: int = BACKGROUND
    ) -> AsyncGenerator[Block | mixer_pb2.MixReport, None]:
        """Mix ``inputs``, read concurrently, once there is room; memory does not grow with their length.

        Args:
            spec: what to mix; see the proto.
            inputs: for each input of the spec, consecutive blocks from frame 0 with its rate and channels. Those that
                no sample of the mix depends on are not read, and may be left out; one that goes on beyond the end of
                the mix is read no further. Closing them remains the caller's business.
            priority: 1 begins before 2 when both wait for room.

        Yields:
            The mix in order, in blocks of at most half a second, ``spec.frames`` in all, or nothing of it where it is
            only measured; last the report.

        Raises:
            ValueError: the inputs are not those of the spec, or a block is not.
            MixerError: the mixer refused, failed or is away.
            Exception: what an input raises.
        """
        feed = _Feed(spec, inputs, self._read_ahead_seconds)
        seconds = _DEADLINE_SECONDS + _DEADLINE_FACTOR * feed.seconds
        method = mixer_pb2_grpc.MixerServiceStub(self._channel).Mix
        report = None
        async with aclosing(self._exchange(method, seconds, feed, priority)) as responses:
            async for response in responses:
                if response.HasField("report"):
                    report = response.report
                    continue
                samples = np.frombuffer(response.block.samples, _FLOAT).reshape(spec.channels, -1)
                yield Block(samples.astype(np.float32, copy=False), spec.sample_rate, response.block.start)
        if report is None:
            raise MixerError(grpc.StatusCode.UNKNOWN, "", "the mix ended without a report")
        yield report

    async def _admitted(self, call: Call, feed: Any) -> None:
        await self._first_answer(call, mixer_pb2.MixRequest(spec=feed.spec))


class _Feed(Feed):
    """Writes the inputs of one mix to its call, none of them too far ahead.

    Attributes:
        spec: of the mix.
        seconds: of the mix, or of the longest input.
    """

    def __init__(
        self, spec: mixer_pb2.MixSpec, inputs: Mapping[str, AsyncIterable[Block]], read_ahead_seconds: float
    ) -> None:
        super().__init__()
        self.spec, self._inputs = spec, inputs
        self._placements = placements(spec)
        needed = {
            asked.name for asked, placement in zip(spec.inputs, self._placements, strict=True) if placement.needed
        }
        if not needed <= set(inputs) <= {asked.name for asked in spec.inputs}:
            raise ValueError(f"inputs {sorted(inputs)} are not those of the spec")
        self._read_ahead = max(1, min(round(read_ahead_seconds * spec.sample_rate), read_ahead_frames(spec)))
        self._known = [placement.known(0) for placement in self._placements]
        self._moved = asyncio.Condition()
        longest = max((each.needed / each.sample_rate for each in self._placements), default=0.0)
        self.seconds = max(spec.frames / spec.sample_rate, longest)

    async def _run(self) -> None:
        needed = [place for place, placement in enumerate(self._placements) if placement.needed]
        await together(
            *(self._input(place, self._inputs[self.spec.inputs[place].name]) for place in needed),
        )
        await self._write(mixer_pb2.MixRequest(end=mixer_pb2.MixEnd()))

    async def _input(self, place: int, blocks: AsyncIterable[Block]) -> None:
        name, placement, sent = self.spec.inputs[place].name, self._placements[place], 0
        most = self._read_ahead * placement.sample_rate // self.spec.sample_rate
        most = max(1, min(BLOCK_FRAMES, most))
        async for block in blocks:
            if (block.sample_rate, block.channels) != (placement.sample_rate, placement.channels):
                raise ValueError(
                    f"{name}: {block.channels} channels of {block.sample_rate} Hz are not what was announced"
                )
            for offset in range(0, block.frames, most):
                part = block.samples[:, offset : offset + most]
                await self._part(place, block.start + offset, part)
            sent += block.frames
            if placement.needed <= sent < placement.frames:
                break
        if sent < placement.needed:
            # The others would wait for it.
            raise ValueError(f"{name}: ended after {sent} of {placement.frames} frames")

    async def _part(self, place: int, start: int, samples: NDArray[np.float32]) -> None:
        placement, end = self._placements[place], start + samples.shape[1]
        position = placement.position(end)
        async with self._moved:
            await self._moved.wait_for(lambda: position - min(self._known) <= self._read_ahead)
        data = samples.astype(_FLOAT, copy=False).tobytes()
        block = mixer_pb2.InputBlock(input=place, start=start, samples=data)
        await self._write(mixer_pb2.MixRequest(block=block))
        async with self._moved:
            self._known[place] = placement.known(end)
            self._moved.notify_all()
