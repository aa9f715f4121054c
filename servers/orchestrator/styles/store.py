"""Rows of styles, each with its recording, its grain library and where the job that cuts it stands."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from servers.storage.database import Connection, Pool, Row

# Whoever has the same library has the same grains: a style whose own job failed is ready when another one's succeeded.
_COLUMNS = """s.*, r.container, r.codec, r.sample_rate, r.channels, r.frames, r.bit_depth, r.peak,
    l.object_key, l.size_bytes, l.content_sha256, l.version, l.grain_count, l.pitched_count, l.grain_seconds,
    l.low_hz, l.high_hz, l.preview_key, l.preview_bytes, l.preview_sha256, l.preview_rate, l.preview_channels,
    l.preview_frames, l.preview_peak, l.preview_clipped, l.created_at AS built_at,
    CASE WHEN l.id IS NOT NULL THEN 'READY' WHEN j.state IN ('FAILED', 'CANCELLED') THEN 'ERROR' ELSE 'BUILDING' END
        AS state, j.state AS job_state, j.error AS job_error"""
_FROM = """styles s JOIN recordings r USING (sha256)
    LEFT JOIN grain_libraries l ON l.id = s.library_id LEFT JOIN jobs j ON j.id = s.job_id"""


@dataclass(frozen=True, slots=True)
class NewStyle:
    """What a style is created from; ``cut`` is the JSON form of a proto ``Cut`` with every default written down."""

    id: UUID
    owner: str
    request_id: UUID
    display_name: str
    sha256: str
    cut: dict[str, Any]
    library_id: UUID


class StyleStore:
    """The table of styles.

    Rows have all columns of ``styles``, the recording's that describe it, those of ``grain_libraries`` (null before it
    is built; its moment is ``built_at``), ``state`` ("BUILDING", "READY", "ERROR"), ``job_state`` and ``job_error``.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def get(self, style_id: UUID, owner: str | None = None) -> Row | None:
        """A style, if it exists and belongs to ``owner`` (None: to anyone)."""
        return await self._pool.fetchrow(
            f"SELECT {_COLUMNS} FROM {_FROM} WHERE s.id = $1 AND ($2::text IS NULL OR s.owner = $2)", style_id, owner
        )

    async def of_request(self, owner: str, request_id: UUID) -> Row | None:
        """The style that a request made."""
        return await self._pool.fetchrow(
            f"SELECT {_COLUMNS} FROM {_FROM} WHERE s.owner = $1 AND s.request_id = $2", owner, request_id
        )

    async def page(self, owner: str, limit: int, before: tuple[dt.datetime, UUID] | None) -> list[Row]:
        """Styles of ``owner``, newest first, those created before the position ``before``."""
        created_at, style_id = before or (None, None)
        return await self._pool.fetch(
            f"""SELECT {_COLUMNS} FROM {_FROM}
                WHERE s.owner = $1 AND ($2::timestamptz IS NULL OR (s.created_at, s.id) < ($2, $3::uuid))
                ORDER BY s.created_at DESC, s.id DESC LIMIT $4""",
            owner,
            created_at,
            style_id,
            limit,
        )

    async def insert(self, connection: Connection, style: NewStyle) -> bool:
        """Insert a style as part of a transaction; False: its request has made one already."""
        # So that it is not removed as needless, unless that was begun before: then it is built again.
        await connection.execute("SELECT 1 FROM grain_libraries WHERE id = $1 FOR KEY SHARE", style.library_id)
        inserted = await connection.fetchval(
            """INSERT INTO styles (id, owner, request_id, display_name, sha256, cut, library_id)
               VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (owner, request_id) DO NOTHING RETURNING 1""",
            style.id,
            style.owner,
            style.request_id,
            style.display_name,
            style.sha256,
            style.cut,
            style.library_id,
        )
        return inserted is not None

    async def assign(self, connection: Connection, style_id: UUID, job_id: UUID) -> None:
        """Note which job cuts a style, as part of a transaction."""
        await connection.execute("UPDATE styles SET job_id = $2 WHERE id = $1", style_id, job_id)

    async def rename(self, style_id: UUID, display_name: str) -> None:
        """Change what a style is called."""
        await self._pool.execute("UPDATE styles SET display_name = $2 WHERE id = $1", style_id, display_name)

    async def delete(self, style_id: UUID) -> bool:
        """Let a style be no longer; False: it is gone already."""
        return bool(await self._pool.fetchval("DELETE FROM styles WHERE id = $1 RETURNING 1", style_id))

    async def is_wanted(self, library_id: UUID) -> bool:
        """Whether any style has this library, or is to have it."""
        return bool(await self._pool.fetchval("SELECT 1 FROM styles WHERE library_id = $1 LIMIT 1", library_id))
