"""Rows of scans and their items, as callers ask for them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from servers.orchestrator.jobs.store import JobStore
from servers.storage.database import Connection, Pool, Row

MAX_SCANS = 100  # of one owner that have not ended


class TooManyScans(Exception):
    """The owner must wait for one of his scans to end."""


class UnknownTrack(LookupError):
    """There is no such ``track``."""

    def __init__(self, track: UUID) -> None:
        super().__init__(track)
        self.track = track


class ScanComplete(Exception):
    """A scan has all its tracks already."""


class ScanStore:
    """The tables of scans."""

    def __init__(self, pool: Pool, jobs: JobStore) -> None:
        self._pool = pool
        self._jobs = jobs

    async def open(self, owner: str, request_id: UUID, spec: dict[str, Any], headers: dict[str, str]) -> Row:
        """Begin a scan, or find the one that the same request began, whatever its specification.

        Raises:
            TooManyScans: ``MAX_SCANS`` have not ended.
        """
        found = await self._pool.fetchrow("SELECT * FROM scans WHERE owner = $1 AND request_id = $2", owner, request_id)
        if found is not None:
            return found
        unfinished = "SELECT count(*) FROM scans WHERE owner = $1 AND ended_at IS NULL"
        if await self._pool.fetchval(unfinished, owner) >= MAX_SCANS:
            raise TooManyScans
        row = await self._pool.fetchrow(
            """INSERT INTO scans (id, owner, request_id, spec, headers) VALUES ($1, $2, $3, $4, $5)
               ON CONFLICT (owner, request_id) DO UPDATE SET request_id = excluded.request_id RETURNING *""",
            uuid4(),
            owner,
            request_id,
            spec,
            headers,
        )
        assert row is not None
        return row

    async def get(self, scan_id: UUID, owner: str) -> Row | None:
        """A scan of ``owner``, if there is one."""
        return await self._pool.fetchrow("SELECT * FROM scans WHERE id = $1 AND owner = $2", scan_id, owner)

    async def page(self, owner: str, limit: int, before: tuple[dt.datetime, UUID] | None) -> list[Row]:
        """Scans of ``owner``, newest first, those created before the position ``before``."""
        created_at, scan_id = before or (None, None)
        return await self._pool.fetch(
            """SELECT * FROM scans
               WHERE owner = $1 AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
               ORDER BY created_at DESC, id DESC LIMIT $4""",
            owner,
            created_at,
            scan_id,
            limit,
        )

    async def items(self, scan_id: UUID, limit: int, after: int, states: Sequence[str]) -> list[Row]:
        """Items in one of ``states``, as they came, from the one after the number ``after``."""
        # From an index for each state: few may be wanted of many.
        return await self._pool.fetch(
            """SELECT found.* FROM unnest($4::text[]) AS wanted, LATERAL (
                   SELECT * FROM scan_items WHERE scan_id = $1 AND state = wanted AND number > $3
                   ORDER BY number LIMIT $2) AS found
               ORDER BY number LIMIT $2""",
            scan_id,
            limit,
            after,
            list(states),
        )

    async def name(self, scan: Row, tracks: Sequence[UUID]) -> None:
        """Add tracks of the owner's to an open scan.

        Those that it has already are passed over, even if they were deleted since; so are all once it is cancelled.

        Raises, and adds none:
            UnknownTrack: The owner has no such track.
            ScanComplete: All tracks were named before, and this is not one of them.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            state = await connection.fetchrow(
                "SELECT complete, cancelled FROM scans WHERE id = $1 FOR NO KEY UPDATE", scan["id"]
            )
            if state is None or state["cancelled"]:
                return
            rows = await connection.fetch(
                "SELECT named FROM scan_items WHERE scan_id = $1 AND named = ANY($2)", scan["id"], list(tracks)
            )
            had = {row["named"] for row in rows}
            new = [track for track in dict.fromkeys(tracks) if track not in had]
            # Locked, or one could be deleted before it is added.
            rows = await connection.fetch(
                "SELECT id FROM tracks WHERE id = ANY($1) AND owner = $2 ORDER BY id FOR KEY SHARE", new, scan["owner"]
            )
            known = {row["id"] for row in rows}
            for track in new:
                if track not in known:
                    raise UnknownTrack(track)
                if state["complete"]:
                    raise ScanComplete
            if not state["complete"]:
                await _add(connection, scan["id"], new)

    async def complete(self, scan_id: UUID) -> None:
        """Say that all tracks have been named."""
        await self._pool.execute("UPDATE scans SET complete = true WHERE id = $1 AND ended_at IS NULL", scan_id)

    async def cancel(self, scan_id: UUID, owner: str) -> Row | None:
        """End a scan and cancel its jobs; as it is then, None if there is none."""
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(
                """UPDATE scans SET cancelled = true, ended_at = now()
                   WHERE id = $1 AND owner = $2 AND ended_at IS NULL RETURNING *""",
                scan_id,
                owner,
            )
            if row is None:
                return await connection.fetchrow("SELECT * FROM scans WHERE id = $1 AND owner = $2", scan_id, owner)
            jobs = await connection.fetch(
                "UPDATE scan_items SET busy = false WHERE scan_id = $1 AND busy RETURNING job_id", scan_id
            )
            await self._jobs.cancel_all([job["job_id"] for job in jobs], owner, connection)
            return row


async def _add(connection: Connection, scan_id: UUID, tracks: Sequence[UUID]) -> None:
    await connection.execute(
        """INSERT INTO scan_items (scan_id, named, track_id)
           SELECT $1, id, id FROM unnest($2::uuid[]) WITH ORDINALITY AS new (id, position) ORDER BY position""",
        scan_id,
        tracks,
    )
    await connection.execute(
        "UPDATE scans SET total = total + $2, named_at = now() WHERE id = $1", scan_id, len(tracks)
    )
