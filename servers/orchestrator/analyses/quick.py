"""Redis for what is there only to be quick: nobody waits for a Redis that does not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis

from servers.orchestrator.jobs.events import AWAY
from servers.platform import telemetry

_SECONDS = 0.5
_AWAY_SECONDS = 2.0
_PLACES = 16  # at once: each takes a connection, of which a client of Redis has a hundred

T = TypeVar("T")


class QuickRedis:
    """Asks Redis for a moment only, and not at all for some seconds once it has not answered."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._away_until = 0.0
        self._places = asyncio.Semaphore(_PLACES)

    async def ask(self, command: Callable[[Redis], Awaitable[T]]) -> T:
        """What ``command`` returns; raises one of AWAY."""
        async with self._places:
            if time.monotonic() < self._away_until:
                raise ConnectionError("Redis did not answer a moment ago")
            try:
                async with asyncio.timeout(_SECONDS):
                    return await command(self._redis)
            except AWAY as error:
                telemetry.log().warning("Redis not asked for a while", error=type(error).__name__)
                self._away_until = time.monotonic() + _AWAY_SECONDS
                raise
