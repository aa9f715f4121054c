"""What is known of recordings whose analysis is being made, for whoever waits for it, on any server.

It is kept by recording and version, not by job: attempts and jobs that do the same find the same, and what a lost
attempt has found stays true. It is a convenience: without Redis, who waits gets all of it at the end, of PostgreSQL.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from contrafact.v1 import analysis_pb2
from redis.asyncio import Redis

from servers.analyzer.version import ANALYZER
from servers.orchestrator.analyses.features import Feature, Growing, split
from servers.orchestrator.analyses.quick import QuickRedis
from servers.orchestrator.jobs.events import AWAY, BEGINNING
from servers.storage import keys

_KEPT_SECONDS = 3600  # after the last feature
_KEPT_ENTRIES = 200  # several attempts


class PartialAnalyses:
    """Writes and reads features as soon as they are known, without their long lists."""

    def __init__(self, redis: Redis) -> None:
        self._redis = QuickRedis(redis)

    async def add(self, sha256: str, features: analysis_pb2.Features) -> None:
        """Tell of features that are known now."""
        key, data = keys.partial_analysis(sha256, ANALYZER), split(features)[0].SerializeToString()

        async def write(redis: Redis) -> None:
            async with redis.pipeline(transaction=False) as pipe:
                pipe.xadd(key, {"features": data}, maxlen=_KEPT_ENTRIES, approximate=True)
                pipe.expire(key, _KEPT_SECONDS)
                await pipe.execute()

        with suppress(*AWAY):
            await self._redis.ask(write)

    async def forget(self, sha256: str) -> None:
        """They are stored, all of them."""
        with suppress(*AWAY):
            await self._redis.ask(lambda redis: redis.delete(keys.partial_analysis(sha256, ANALYZER)))

    def reader(self, sha256: str) -> PartialReader:
        """Begin to read what is known."""
        return PartialReader(self._redis, sha256)


class PartialReader:
    """One reader of a growing analysis."""

    def __init__(self, redis: QuickRedis, sha256: str) -> None:
        self._redis = redis
        self._key = keys.partial_analysis(sha256, ANALYZER)
        self._cursor = BEGINNING
        self._growing = Growing()

    @property
    def features(self) -> analysis_pb2.Features:
        """All that was read."""
        return self._growing.features

    async def read(self) -> list[Feature]:
        """Read on; which features are new, in the order in which they came."""
        try:
            entries: Any = await self._redis.ask(lambda redis: redis.xrange(self._key, min=f"({self._cursor}"))
        except AWAY:
            return []
        new: list[Feature] = []
        for cursor, fields in entries:
            self._cursor = cursor.decode()
            new += self._growing.add(analysis_pb2.Features.FromString(fields[b"features"]))
        return new
