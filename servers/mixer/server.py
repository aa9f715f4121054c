"""MixerService: messages in, messages out; all arithmetic happens in worker threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from itertools import islice

import grpc
import numpy as np
from contrafact.engine.v1 import mixer_pb2, mixer_pb2_grpc

from servers.mixer.mixing import Mixing, Refused
from servers.platform.errors import ApiError, invalid
from servers.platform.interceptors import Context

MAX_MIXES = 32
"""At once. Each may hold a minute of its inputs: 340 MB of 16 at 44.1 kHz, 540 MB at most."""
_AT_ONCE = 8
"""Pieces of the mix that are made before they are sent: without inputs that are heard, hours may be ready at once."""
_FLOAT = np.dtype("<f4")


class MixerService(mixer_pb2_grpc.MixerServiceServicer):
    """The service. It keeps nothing between calls."""

    def __init__(self) -> None:
        self._mixes = 0

    async def Mix(
        self, requests: AsyncIterator[mixer_pb2.MixRequest], context: Context
    ) -> AsyncIterator[mixer_pb2.MixResponse]:
        """Mix: see the proto."""
        if self._mixes >= MAX_MIXES:
            message = f"this server mixes {MAX_MIXES} streams at once, no more"
            raise ApiError(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_MIXES", message, retry_after=1)
        self._mixes += 1
        try:
            async with aclosing(_mix(requests)) as responses:
                async for response in responses:
                    yield response
        except Refused as error:
            raise _refusal(error) from error
        finally:
            self._mixes -= 1


async def _mix(requests: AsyncIterator[mixer_pb2.MixRequest]) -> AsyncGenerator[mixer_pb2.MixResponse, None]:
    first = await anext(requests, None)
    if first is None or not first.HasField("spec"):
        raise invalid("SPEC_MISSING", "the first message must be the spec")
    try:
        mix = _Mix(first.spec)
    except ValueError as error:
        raise invalid("INVALID_FIELD", str(error), "spec.inputs") from error
    yield mixer_pb2.MixResponse(block=mixer_pb2.MixedBlock())
    block: mixer_pb2.InputBlock | None = None
    while True:
        more = True
        while more:
            more, responses = await asyncio.to_thread(mix.step, block)
            block = None
            for response in responses:
                yield response
        # Reading goes on when these are written: a caller that does not read is not read from.
        request = await anext(requests, None)
        if request is None:
            raise invalid("STREAM_BROKEN", "the stream ended without an end message")
        if request.HasField("spec"):
            raise invalid("SPEC_REPEATED", "there is one spec, in the first message")
        if request.HasField("end"):
            break
        block = request.block
    yield mixer_pb2.MixResponse(report=mix.report())


class _Mix:
    """One mix: blocks in, responses out."""

    def __init__(self, spec: mixer_pb2.MixSpec) -> None:
        self._mixing = Mixing(spec)
        self._pieces = self._mixing.mixed()
        self._silent = spec.measure_only
        self.report = self._mixing.report

    def step(self, block: mixer_pb2.InputBlock | None) -> tuple[bool, list[mixer_pb2.MixResponse]]:
        """Take in a block, if there is one, and mix some of what is ready: whether there may be more, and answers."""
        if block is not None:
            self._add(block)
            self._pieces = self._mixing.mixed()
        count, responses, start = 0, [], self._mixing.position
        for samples in islice(self._pieces, _AT_ONCE):
            if not self._silent:
                mixed = mixer_pb2.MixedBlock(start=start, samples=samples.astype(_FLOAT, copy=False).tobytes())
                responses.append(mixer_pb2.MixResponse(block=mixed))
            start = self._mixing.position
            count += 1
        return count == _AT_ONCE, responses

    def _add(self, block: mixer_pb2.InputBlock) -> None:
        channels, data = self._mixing.channels(block.input), block.samples
        if len(data) % (channels * _FLOAT.itemsize):
            message = f"{len(data)} bytes are no whole number of frames of {channels} channels"
            raise Refused("WRONG_SIZE", message, "samples")
        self._mixing.add(block.input, block.start, np.frombuffer(data, _FLOAT).reshape(channels, -1))


def _refusal(error: Refused) -> ApiError:
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if error.reason == "RAN_AHEAD" else grpc.StatusCode.INVALID_ARGUMENT
    fields = [(f"block.{error.field}", str(error))] if error.field else []
    facts = {name: str(value) for name, value in error.facts.items()}
    return ApiError(code, error.reason, str(error), metadata=facts, fields=fields)
