"""Calls of the grains engine without our client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest
from contrafact.engine.v1 import grains_pb2_grpc
from contrafact.engine.v1.grains_pb2 import (
    BuildRequest,
    BuildSpec,
    RenderRequest,
    RenderSpec,
    TraceRequest,
    TraceSpec,
)
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.engine_process import GrainsProcess
from tests.grains.sounds import RATE

Code = grpc.StatusCode

KINDS: dict[str, tuple[Any, Any]] = {"Build": (BuildRequest, BuildSpec), "Trace": (TraceRequest, TraceSpec)}

LIBRARY = b"no library"


def method_of(channel: Any, method: str) -> Any:
    return getattr(grains_pb2_grpc.GrainsServiceStub(channel), method)


async def answers(channel: grpc.aio.Channel, method: str, requests: Iterable[Any]) -> list[Any]:
    """All that comes back."""

    async def sent() -> AsyncIterator[Any]:
        for request in requests:
            yield request

    return [response async for response in method_of(channel, method)(sent(), timeout=100)]


async def begun(channel: grpc.aio.Channel, method: str, spec: Any, **options: Any) -> Any:
    """A call that the server has taken on."""
    call = method_of(channel, method)(**options)
    await call.write(KINDS[method][0](spec=spec) if method in KINDS else RenderRequest(spec=spec))
    first = await call.read()
    assert first is not grpc.aio.EOF, await call.details()
    return call


async def refusal(
    grains: GrainsProcess, method: str, *requests: Any
) -> tuple[grpc.StatusCode, str, list[str], dict[str, str]]:
    """Status, reason, fields at fault and facts of a refused call."""

    def attempt() -> Any:
        # grpc's asyncio API may lose what is answered while it sends.
        with grpc.insecure_channel(grains.address) as plain, pytest.raises(grpc.RpcError) as refused:
            list(method_of(plain, method)(iter(requests), timeout=60))
        return refused.value

    error = await asyncio.to_thread(attempt)
    status = rpc_status.from_call(error)
    assert status is not None
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        for message in (info, bad):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    assert info.domain == "contrafact"
    return error.code(), info.reason, [each.field for each in bad.field_violations], dict(info.metadata)


async def begun_render(channel: grpc.aio.Channel, spec: RenderSpec) -> tuple[Any, bool]:
    """A render that the server has taken on, and whether it wants the library."""
    call = method_of(channel, "Render")()
    await call.write(RenderRequest(spec=spec))
    return call, (await call.read()).ready.library_wanted


def spec_with(kind: type, **changes: Any) -> Any:
    values: dict[str, Any] = {"sample_rate": RATE, "channels": 2, "frames": 9}
    if kind is RenderSpec:
        values |= {"library_sha256": "0" * 64, "library_bytes": len(LIBRARY)}
    return kind(**values | changes)
