"""GrainsService: messages in, messages out."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
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


@dataclass(slots=True)
class _Group:
    """Renderings that wait for one another. It has all of its places from its first rendering to its last.

    Attributes:
        key: kind and priority of its places.
        size: how many.
        running: renderings that are under way.
    """

    key: tuple[type[Running], int]
    size: int
    running: int = 0


class GrainsService(grains_pb2_grpc.GrainsServiceServicer):
    """The service. Between calls it keeps libraries, no more.

    Args:
        shared: what all calls share.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._calls: Counter[tuple[type[Running], int]] = Counter()
        self._groups: dict[str, _Group] = {}

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
        with self._room(kind, priority, first.spec):
            async with aclosing(kind(first.spec, priority, self._shared).responses(requests)) as responses:
                async for response in responses:
                    yield response

    @contextmanager
    def _room(self, kind: type[Running], priority: int, spec: Any) -> Iterator[None]:
        size = spec.group_size if kind is Playing and spec.group else 0
        name = spec.group if size else ""
        group = self._groups.get(name) or _Group((kind, priority), max(1, size))
        if not group.running:
            self._take(*group.key, group.size)
            if name:
                self._groups[name] = group
        elif group.running == group.size:
            raise _full(f"this group has {group.size} renderings, no more")
        group.running += 1
        try:
            yield
        finally:
            group.running -= 1
            if not group.running:
                self._calls[group.key] -= group.size
                self._groups.pop(name, None)

    def _take(self, kind: type[Running], priority: int, places: int) -> None:
        """Take so many places, or raise TOO_MANY_CALLS."""
        for most, kinds, priorities in _ROOMS:
            held = sum(self._calls[each, of] for each in kinds for of in priorities)
            if kind in kinds and priority in priorities and held + places > most:
                raise _full(f"of such calls this server takes {most} at once, no more")
        self._calls[kind, priority] += places


def _full(message: str) -> ApiError:
    return ApiError(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS", message, retry_after=1)
