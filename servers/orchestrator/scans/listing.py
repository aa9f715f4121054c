"""What a scan finds by itself: all tracks of its owner, or the objects below a prefix, page by page."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any
from uuid import UUID

from servers.platform import telemetry
from servers.storage.database import Connection, Pool, Row
from servers.storage.objects import ObjectStore, StoredObject

LISTED = "spec ?| ARRAY['all_tracks', 'prefix']"  # of the scans that find their items by themselves
_PAGE = 1000
_PAGES = 10  # of one scan before others have their turn
_SCANS = 100  # in one round
_SECONDS = 30.0  # for the pages of one scan: the object store may hang


class Lister:
    """Lists the sources of scans; a chore."""

    def __init__(self, pool: Pool, objects: ObjectStore) -> None:
        self._pool = pool
        self._objects = objects

    async def round(self) -> dict[str, Any]:
        """List some more of every scan whose source is not known to its end."""
        # In any order, so that none that hangs keeps always the same others waiting.
        scans = await self._pool.fetch(
            f"SELECT * FROM scans WHERE ended_at IS NULL AND NOT complete AND {LISTED} ORDER BY random() LIMIT $1",
            _SCANS,
        )
        for scan in scans:
            try:
                async with asyncio.timeout(_SECONDS):
                    await self._list(scan)
            except Exception as error:  # whatever it is, the others must have their turn
                telemetry.log().warning("scan not listed", scan_id=str(scan["id"]), error=type(error).__name__)
        return {"listed": len(scans)}

    async def _list(self, scan: Row) -> None:
        cursor: str | None = scan["cursor"]
        add = self._add_objects if "prefix" in scan["spec"] else self._add_tracks
        for _ in range(_PAGES):
            if cursor is None:
                return
            cursor = await add(scan, cursor)

    async def _add_objects(self, scan: Row, cursor: str) -> str | None:
        """Add a page of objects after the one ``cursor``; returns the last of it, None when that was all."""
        prefix = scan["spec"]["prefix"]
        page = await self._objects.page(prefix, cursor)
        found = [each for each in page if each.key.startswith(prefix) and not each.key.endswith("/")]
        last = page[-1].key if page else None
        async with self._pool.acquire() as connection, connection.transaction():
            if await _advance(connection, scan, cursor, last):
                await _insert_objects(connection, scan, found)
        return last

    async def _add_tracks(self, scan: Row, cursor: str) -> str | None:
        """Add a page of the tracks that the owner had, newest first; ``cursor`` is time and id of the last."""
        moment, _, track = cursor.partition(" ")
        async with self._pool.acquire() as connection, connection.transaction():
            page = await connection.fetch(
                """SELECT id, created_at FROM tracks WHERE owner = $1 AND created_at <= $2
                     AND ($3::timestamptz IS NULL OR (created_at, id) < ($3, $4::uuid))
                   ORDER BY created_at DESC, id DESC LIMIT $5""",
                scan["owner"],
                scan["created_at"],
                dt.datetime.fromisoformat(moment) if moment else None,
                UUID(track) if track else None,
                _PAGE,
            )
            last = f"{page[-1]['created_at'].isoformat()} {page[-1]['id']}" if page else None
            if await _advance(connection, scan, cursor, last):
                await connection.execute(
                    f"""WITH added AS (
                            INSERT INTO scan_items (scan_id, named, track_id)
                            SELECT $1, id, id FROM unnest($2::uuid[]) WITH ORDINALITY AS found (id, position)
                            ORDER BY position ON CONFLICT DO NOTHING RETURNING 1
                        ) {_COUNT}""",
                    scan["id"],
                    [row["id"] for row in page],
                )
        return last


_COUNT = "UPDATE scans SET total = total + (SELECT count(*) FROM added) WHERE id = $1"


async def _advance(connection: Connection, scan: Row, cursor: str, last: str | None) -> bool:
    """Note how far the source is known; False if somebody else has, or the scan has ended."""
    return bool(
        await connection.fetchval(
            """UPDATE scans SET cursor = coalesce($3, cursor), complete = $3 IS NULL
               WHERE id = $1 AND cursor = $2 AND NOT complete AND ended_at IS NULL RETURNING true""",
            scan["id"],
            cursor,
            last,
        )
    )


async def _insert_objects(connection: Connection, scan: Row, found: list[StoredObject]) -> None:
    # What an earlier scan has imported, and nobody has changed since, need not be fetched again.
    await connection.execute(
        f"""WITH added AS (
                INSERT INTO scan_items (scan_id, object, version, track_id)
                SELECT $1, key, found.version,
                       (SELECT track_id FROM scan_items earlier JOIN scans ON scans.id = scan_id
                        WHERE object = key AND earlier.version = found.version AND track_id IS NOT NULL AND owner = $4
                        LIMIT 1)
                FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS found (key, version, position)
                ORDER BY position ON CONFLICT DO NOTHING RETURNING 1
            ) {_COUNT}""",
        scan["id"],
        [each.key for each in found],
        [f"{each.size_bytes} {each.modified.isoformat()}" for each in found],
        scan["owner"],
    )
