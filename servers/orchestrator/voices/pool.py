"""The voice pool's reports: read from the model by the reconciler, kept in Redis for all API servers."""

from __future__ import annotations

import json
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from servers.inference.triton import TritonError
from servers.inference.voices import VoiceModel
from servers.platform import telemetry
from servers.storage import keys

Report = dict[str, Any]
"""What the model tells of its pool: process, settings, voices, counters, disk. See model_repository/README.md."""

KEPT_SECONDS = 60  # longer than the model may take to answer
_COUNTED_SECONDS = 30 * 24 * 3600
EVENTS = ("reused", "inserted", "evicted", "expired", "failed")


class PoolReports:
    """The last report, for whoever asks."""

    def __init__(self, redis: Redis, model: VoiceModel) -> None:
        self._redis = redis
        self._model = model

    async def last(self) -> Report | None:
        """The last report, or the model's own where nobody keeps one; None: the model does not answer."""
        try:
            kept = await self._redis.get(keys.VOICE_POOL)
        except (RedisError, OSError):
            kept = None
        if kept is not None:
            known: Report = json.loads(kept)
            return known or None
        try:
            return await self._model.report()
        except TritonError:
            return None

    async def keep(self, report: Report | None) -> None:
        """Let all servers know the report, or (None) that the model does not answer."""
        await self._redis.set(keys.VOICE_POOL, json.dumps(report or {}), ex=KEPT_SECONDS)

    async def keep_on(self) -> None:
        """Believe the last report for some more seconds: the model is too busy for another."""
        await self._redis.expire(keys.VOICE_POOL, KEPT_SECONDS)

    async def counted(self) -> Report:
        """Process and counters that ``count`` has seen last; empty: none."""
        seen: Report = json.loads(await self._redis.get(keys.VOICE_POOL_COUNTED) or "{}")
        return seen

    async def count(self, report: Report, seen: Report) -> None:
        """Add to the metrics what has happened since ``seen``, which may have been another worker's turn."""
        for state in ("WARM", "LOADING"):
            voices = [voice for voice in report["voices"] if voice["state"] == state]
            telemetry.VOICE_POOL_VOICES.labels(state).set(len(voices))
        telemetry.VOICE_POOL_BYTES.set(sum(voice["bytes"] for voice in report["voices"]))
        counters = report["counters"]
        # A new process counts from zero.
        before = seen.get("counters", {}) if seen.get("process") == report["process"] else {}
        if counters == before:
            return
        kept = {"process": report["process"], "counters": counters}
        await self._redis.set(keys.VOICE_POOL_COUNTED, json.dumps(kept), ex=_COUNTED_SECONDS)
        for event in EVENTS:
            telemetry.VOICE_POOL_EVENTS.labels(event).inc(max(0, counters[event] - before.get(event, 0)))
        seconds = counters["load_seconds"] - before.get("load_seconds", 0.0)
        telemetry.VOICE_POOL_LOAD_SECONDS.inc(max(0.0, seconds))


def forget() -> None:
    """Show nothing of the pool's state: it is not known, or another worker shows it."""
    telemetry.VOICE_POOL_VOICES.clear()
    telemetry.VOICE_POOL_BYTES.set(0)
