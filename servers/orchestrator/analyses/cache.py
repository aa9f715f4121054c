"""Analyses that were read lately, in Redis: who plays a track again waits for nothing, nor does PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any
from uuid import UUID

from contrafact.v1 import analysis_pb2
from google.protobuf.message import DecodeError
from redis.asyncio import Redis

from servers.orchestrator.analyses.features import is_current
from servers.orchestrator.analyses.quick import QuickRedis
from servers.orchestrator.jobs.events import AWAY
from servers.platform import telemetry
from servers.platform.settings import Settings
from servers.platform.tasks import Background
from servers.storage import keys

_GONE = b""  # a deleted track: nothing may be put there again
_GONE_SECONDS = 60.0  # at least: longer than anybody takes from reading PostgreSQL to writing Redis
_RETRY_SECONDS = 1.0


class AnalysisCache(Background):
    """Analyses (BASIC view) of tracks, each with the track's owner; used as a context manager.

    What is here can be told to its owner without asking PostgreSQL: owners do not change, analyses of one version do
    not, and a deleted track is forgotten first and deleted then. Without Redis there is nothing here, and who forgets a
    track tries again for as long as an entry could live.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = QuickRedis(redis)
        self._seconds = settings.analysis_cache_seconds
        self._model = settings.embedding_model
        self._forgetting: dict[UUID, float] = {}  # until when it matters
        self._wanted = asyncio.Event()

    async def get(self, track_id: UUID, owner: str) -> analysis_pb2.Analysis | None:
        """The analysis of a track of ``owner``, if it is here."""
        try:
            value: Any = await self._redis.ask(lambda redis: redis.get(keys.analysis(track_id)))
        except AWAY:
            return None
        whose, _, data = (value or _GONE).partition(b"\0")
        if whose != owner.encode() or not data:
            return None
        try:
            analysis = analysis_pb2.Analysis.FromString(data)
        except DecodeError:
            return None
        return analysis if is_current(analysis.analyzer, analysis.features, self._model) else None

    async def put(self, track_id: UUID, owner: str, analysis: analysis_pb2.Analysis) -> None:
        """Keep the analysis of a track, unless that was deleted meanwhile."""
        value = owner.encode() + b"\0" + analysis.SerializeToString()
        with suppress(*AWAY):
            await self._redis.ask(
                lambda redis: redis.set(keys.analysis(track_id), value, nx=True, px=round(self._seconds * 1000))
            )

    async def forget(self, track_id: UUID) -> None:
        """From now on, or as soon as Redis is there, a track that is about to be deleted is not here."""
        try:
            await self._forget(track_id)
        except AWAY:
            self._forgetting[track_id] = time.monotonic() + self._seconds
            self._wanted.set()

    async def _forget(self, track_id: UUID) -> None:
        seconds = max(self._seconds, _GONE_SECONDS)
        await self._redis.ask(lambda redis: redis.set(keys.analysis(track_id), _GONE, px=round(seconds * 1000)))

    async def _work(self) -> None:
        while True:
            await self._wanted.wait()
            for track_id, until in list(self._forgetting.items()):
                try:
                    if time.monotonic() < until:
                        await self._forget(track_id)
                except Exception as error:  # whatever it is, the next round must come
                    telemetry.log().warning("analysis not forgotten yet", error=type(error).__name__)
                    break
                del self._forgetting[track_id]
            if not self._forgetting:
                self._wanted.clear()
            await asyncio.sleep(_RETRY_SECONDS)
