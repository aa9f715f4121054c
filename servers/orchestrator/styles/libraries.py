"""Grain libraries that are built: in the object store, and, while they are being used, in Redis."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from redis.asyncio import Redis

from servers.orchestrator.analyses.quick import QuickRedis
from servers.orchestrator.jobs.events import AWAY
from servers.platform import telemetry
from servers.platform.settings import Settings
from servers.storage import keys
from servers.storage.database import Pool, Row, exclusive
from servers.storage.objects import ObjectMissing, ObjectStore


class StyleGone(LookupError):
    """There is no such style."""


class StyleNotReady(Exception):
    """The grains of a style are not cut, or must be cut again."""


@dataclass(frozen=True, slots=True)
class StoredLibrary:
    """The bytes of a grain library (protobuf ``GrainLibrary``) and their digest, 64 hexadecimal digits."""

    sha256: str
    data: bytes


class Libraries:
    """Finds the grain libraries of styles, whoever owns them.

    PostgreSQL says what a style's library is; what Redis has is used only if it has that digest.
    """

    def __init__(self, pool: Pool, objects: ObjectStore, redis: Redis, settings: Settings) -> None:
        self._pool = pool
        self._objects = objects
        self._redis = QuickRedis(redis)
        self._seconds = settings.style_cache_seconds
        self._most_bytes = settings.style_cache_bytes

    async def of(self, style_id: UUID) -> Row | None:
        """The row of ``grain_libraries`` that a style has; None: it is not built. Raises StyleGone."""
        row = await self._pool.fetchrow(
            """SELECT s.id AS style_id, l.* FROM styles s LEFT JOIN grain_libraries l ON l.id = s.library_id
               WHERE s.id = $1""",
            style_id,
        )
        if row is None:
            raise StyleGone(f"styles/{style_id}")
        return row if row["id"] is not None else None

    async def bytes_of(self, style_id: UUID) -> StoredLibrary:
        """All of the grain library of a style, from nearby if it was used lately.

        Raises:
            StyleGone: There is no such style.
            StyleNotReady: Its library is not built, or its object is gone or damaged.
        """
        row = await self.of(style_id)
        if row is None:
            raise StyleNotReady(f"styles/{style_id}")
        sha256: str = row["content_sha256"]
        data = await self._cached(style_id, sha256) if row["size_bytes"] <= self._most_bytes else None
        if data is None:
            data = await self._fetched(style_id, row)
            await self._keep(style_id, sha256, data)
        return StoredLibrary(sha256, data)

    async def forget(self, style_id: UUID) -> None:
        """Drop from Redis what it has of a style that was deleted; without Redis, that goes by itself."""
        with suppress(*AWAY):
            await self._redis.ask(lambda redis: redis.delete(keys.grains(style_id)))

    async def _cached(self, style_id: UUID, sha256: str) -> bytes | None:
        try:
            value: Any = await self._redis.ask(lambda redis: redis.get(keys.grains(style_id)))
        except AWAY:
            return None
        digest, _, data = (value or b"").partition(b"\0")
        if digest != sha256.encode() or await _digest(data) != sha256:
            return None
        return bytes(data)

    async def _fetched(self, style_id: UUID, row: Row) -> bytes:
        parts: list[bytes] = []
        try:
            async with aclosing(self._objects.read(row["object_key"])) as pieces:
                async for data in pieces:
                    parts.append(data)
        except ObjectMissing:
            parts = []
        data = b"".join(parts)
        if await _digest(data) != row["content_sha256"]:
            telemetry.log().error("a grain library is gone or damaged", key=row["object_key"])
            await self._give_up(row)
            raise StyleNotReady(f"styles/{style_id}")
        return data

    async def _give_up(self, row: Row) -> None:
        """Let a library that cannot be read be built again."""
        async with exclusive(self._pool, str(row["id"])) as connection:  # against who publishes it
            await connection.execute(
                "DELETE FROM grain_libraries WHERE id = $1 AND object_key = $2", row["id"], row["object_key"]
            )

    async def _keep(self, style_id: UUID, sha256: str, data: bytes) -> None:
        if len(data) > self._most_bytes:
            return
        value, milliseconds = sha256.encode() + b"\0" + data, round(self._seconds * 1000)
        with suppress(*AWAY):
            await self._redis.ask(lambda redis: redis.set(keys.grains(style_id), value, px=milliseconds))
            try:
                await self.of(style_id)
            except StyleGone:  # deleted meanwhile: whoever did that may have looked too early
                await self.forget(style_id)


async def _digest(data: bytes) -> str:
    return await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
