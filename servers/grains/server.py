"""GrainsService: messages in, messages out."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
from contrafact.engine.v1 import grains_pb2_grpc
from contrafact.engine.v1.grains_pb2 import (
    BuildRequest,
    BuildResponse,
    RenderRequest,
    RenderResponse,
    TraceRequest,
    TraceResponse,
)

from servers.grains.running import Building, Following, Playing, Running, Shared
from servers.platform.errors import ApiError, invalid
from servers.platform.interceptors import Context
from servers.platform.slots import BACKGROUND, INTERACTIVE

MAX_CALLS = 32
"""At once."""
MAX_BACKGROUND = 24
"""Of these, so that a person is not refused because of what nobody waits for."""
MAX_RENDERS, MAX_BACKGROUND_RENDERS = 24, 16
"""Of these: renderings may wait for traces, which must find room then."""

_ROOMS: tuple[tuple[int, tuple[type[Running], ...], tuple[int, ...]], ...] = (
    (MAX_CALLS, (Building, Following, Playing), (INTERACTIVE, BACKGROUND)),
    (MAX_BACKGROUND, (Building, Following, Playing), (BACKGROUND,)),
    (MAX_RENDERS, (Playing,), (INTERACTIVE, BACKGROUND)),
    (MAX_BACKGROUND_RENDERS, (Playing,), (BACKGROUND,)),
)
"""How many calls of these kinds and priorities there may be at once."""


class GrainsService(grains_pb2_grpc.GrainsServiceServicer):
    """The service. Between calls it keeps libraries, no more.

    Args:
        shared: what all calls share.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._calls: Counter[tuple[type[Running], int]] = Counter()

    def Build(self, requests: AsyncIterator[BuildRequest], context: Context) -> AsyncGenerator[BuildResponse, None]:
        """Build: see the proto."""
        return self._responses(Building, requests)

    def Trace(self, requests: AsyncIterator[TraceRequest], context: Context) -> AsyncGenerator[TraceResponse, None]:
        """Trace: see the proto."""
        return self._responses(Following, requests)

    def Render(self, requests: AsyncIterator[RenderRequest], context: Context) -> AsyncGenerator[RenderResponse, None]:
        """Render: see the proto."""
        return self._responses(Playing, requests)

    async def _responses(self, kind: type[Running], requests: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        first = await anext(requests, None)
        if first is None or not first.HasField("spec"):
            raise invalid("SPEC_MISSING", "the first message must be the spec")
        priority = first.spec.priority or BACKGROUND
        with self._room(kind, priority):
            async with aclosing(kind(first.spec, priority, self._shared).responses(requests)) as responses:
                async for response in responses:
                    yield response

    @contextmanager
    def _room(self, kind: type[Running], priority: int) -> Iterator[None]:
        for most, kinds, priorities in _ROOMS:
            held = sum(self._calls[each, of] for each in kinds for of in priorities)
            if kind in kinds and priority in priorities and held >= most:
                message = f"of such calls this server takes {most} at once, no more"
                raise ApiError(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS", message, retry_after=1)
        self._calls[kind, priority] += 1
        try:
            yield
        finally:
            self._calls[kind, priority] -= 1
