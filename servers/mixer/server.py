"""MixerService: messages in, messages out; all arithmetic happens in worker threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import grpc
import numpy as np
from contrafact.engine.v1 import mixer_pb2, mixer_pb2_grpc

from servers.mixer.mixing import Mixing, Refused, Samples
from servers.platform.errors import ApiError, invalid
from servers.platform.interceptors import Context

MAX_MIXES = 32
"""At once. Each may hold a minute of 16 inputs: 340 MB at 44.1 kHz, 540 MB at most."""
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
    mixing, channels = Mixing(first.spec), first.spec.channels
    async for request in requests:
        if request.HasField("spec"):
            raise invalid("SPEC_REPEATED", "there is one spec, in the first message")
        if request.HasField("end"):
            break
        # Reading goes on when these are written: a caller that does not read is not read from.
        for response in await asyncio.to_thread(_add, mixing, channels, request.block):
            yield response
    else:
        raise invalid("STREAM_BROKEN", "the stream ended without an end message")
    yield mixer_pb2.MixResponse(report=mixing.report())


def _add(mixing: Mixing, channels: int, block: mixer_pb2.InputBlock) -> list[mixer_pb2.MixResponse]:
    """Take in one block; what can be answered then."""
    if len(block.samples) % (channels * _FLOAT.itemsize):
        message = f"{len(block.samples)} bytes are no whole number of frames of {channels} channels"
        raise Refused("WRONG_SIZE", message, "samples")
    mixing.add(block.input, block.start, np.frombuffer(block.samples, _FLOAT).reshape(channels, -1))
    responses, start = [], mixing.position
    for samples in mixing.mixed():
        responses.append(mixer_pb2.MixResponse(block=mixer_pb2.MixedBlock(start=start, samples=_bytes(samples))))
        start = mixing.position
    return responses


def _bytes(samples: Samples) -> bytes:
    return samples.astype(_FLOAT, copy=False).tobytes()


def _refusal(error: Refused) -> ApiError:
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if error.reason == "RAN_AHEAD" else grpc.StatusCode.INVALID_ARGUMENT
    fields = [(f"block.{error.field}", str(error))] if error.field else []
    facts = {name: str(value) for name, value in error.facts.items()}
    return ApiError(code, error.reason, str(error), metadata=facts, fields=fields)
