"""Objects without rows, and rows without objects.

Listings go page by page into a temporary table, where PostgreSQL compares them with the rows: nothing here grows
with the bucket, and no order of listings is relied on. What looks like an orphan is looked at again under the lock of
whoever publishes such content, because he stores the bytes first and then the row.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import groupby

from servers.orchestrator.jobs.findings import PAGE, Finding, Stores
from servers.storage.database import Connection, exclusive
from servers.storage.objects import ObjectMissing

FEW_ORIGINALS = 20
_COMPARING_SECONDS = 300.0

_NAME = "split_part(key, '/', 2)"  # of the content that an object belongs to, which is also the name of its lock
_UUID = f"CASE WHEN {_NAME} ~ '^[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}$' THEN {_NAME}::uuid END"


class Strangers(Exception):
    """The database and the bucket do not belong to each other."""


@dataclass(frozen=True, slots=True)
class _Area:
    """A part of the bucket. ``known`` selects the row that knows of the object ``key``."""

    prefix: str
    known: str


@dataclass(frozen=True, slots=True)
class _Content(_Area):
    """Each of its objects is named by a row of ``table``, whose column ``name`` is in the key.

    ``columns`` are those that have the key of an object and its size in bytes; ``forget``, which is to be completed
    by a condition, makes a row forget its object.
    """

    table: str
    name: str
    columns: tuple[tuple[str, str], ...] = (("object_key", "size_bytes"),)
    forget: str = ""


_TRACKS = _Content(
    "tracks/", f"SELECT 1 FROM recordings WHERE sha256 = {_NAME} AND object_key = key", "recordings", "sha256"
)
_STEMS = _Content("stems/", f"SELECT 1 FROM stems WHERE sha256 = {_NAME} AND object_key = key", "stems", "sha256")
_COVERS = _Content("covers/", f"SELECT 1 FROM covers WHERE id = {_UUID} AND object_key = key", "covers", "id")
_LIBRARIES = _Content(
    "styles/",
    f"SELECT 1 FROM grain_libraries WHERE id = {_UUID} AND key IN (object_key, preview_key)",
    "grain_libraries",
    "id",
    (("object_key", "size_bytes"), ("preview_key", "preview_bytes")),
)
_LAYERS = _Content("layers/", f"SELECT 1 FROM layers WHERE id = {_UUID} AND object_key = key", "layers", "id")
_MIXES = _Content(
    "mixes/",
    f"SELECT 1 FROM mixes WHERE id = {_UUID} AND object_key = key",
    "mixes",
    "id",
    forget="UPDATE mixes SET object_key = NULL, rendered_revision = NULL, rendered_job = NULL",
)
_LIVE = _Area(
    "live/",
    f"""SELECT 1 FROM live_pieces WHERE job_id = {_UUID}
        AND 'live/' || job_id || '/' || attempt || '/' || stem || '/' || lpad(start::text, 15, '0') = key""",
)
# A URL to put a piece outlives the upload it was made for.
_UPLOADS = _Area("uploads/", f"SELECT 1 FROM uploads WHERE id = {_UUID}")


async def orphans(stores: Stores, dry_run: bool) -> list[Finding]:
    """Compare bucket and database, and remove what has no counterpart; originals that are gone are only reported.

    Voices have a reconciler of their own.

    Raises:
        Strangers: All originals of one are unknown to the other: nothing was removed.
    """
    await _check_acquaintance(stores)
    day = dt.timedelta(days=stores.settings.orphan_original_days)
    findings = []
    for area in (_TRACKS, _STEMS, _COVERS, _LIBRARIES, _LAYERS, _MIXES, _LIVE, _UPLOADS):
        async with _listed(stores, area.prefix) as connection:
            age = day if area is _TRACKS else dt.timedelta()
            findings.append(await _objects_without_rows(stores, dry_run, connection, area, age))
            if isinstance(area, _Content):
                findings.append(await _rows_without_objects(stores, dry_run, connection, area))
    return findings


async def _check_acquaintance(stores: Stores) -> None:
    """Refuse a wrong bucket or a new database: all that either holds would look like an orphan."""
    sample = await stores.pool.fetch("SELECT object_key FROM recordings ORDER BY random() LIMIT $1", FEW_ORIGINALS)
    for row in sample:
        if not await _is_missing(stores, row["object_key"]):
            return
    if len(sample) == FEW_ORIGINALS:
        raise Strangers(f"none of {FEW_ORIGINALS} originals that the database knows is in the bucket")
    if not sample:
        async for page in stores.objects.pages(_TRACKS.prefix):
            if len(page) > FEW_ORIGINALS:
                raise Strangers("the bucket has originals and the database knows none")
            return


@asynccontextmanager
async def _listed(stores: Stores, prefix: str) -> AsyncIterator[Connection]:
    """A connection whose temporary table ``listed`` has the objects below ``prefix``; some may be there twice."""
    async with stores.pool.acquire() as connection:
        await connection.execute("DROP TABLE IF EXISTS pg_temp.listed")
        await connection.execute(
            "CREATE TEMPORARY TABLE listed (key text NOT NULL, size_bytes bigint NOT NULL, modified_at timestamptz)"
        )
        try:
            async for page in stores.objects.pages(prefix):
                await connection.copy_records_to_table("listed", records=page)
            await connection.execute("ANALYZE listed")
            yield connection
        finally:
            await connection.execute("DROP TABLE listed")


async def _objects_without_rows(
    stores: Stores, dry_run: bool, connection: Connection, area: _Area, age: dt.timedelta
) -> Finding:
    """Remove objects that no row knows, ``age`` after they were stored."""
    finding = Finding(f"{area.prefix} objects without row")
    last = ""
    while True:
        rows = await connection.fetch(
            f"""SELECT DISTINCT ON (key) key, size_bytes, {_NAME} AS name FROM listed
                WHERE key > $1 AND modified_at <= now() - $2::interval AND NOT EXISTS ({area.known})
                ORDER BY key LIMIT $3""",
            last,
            age,
            PAGE,
            timeout=_COMPARING_SECONDS,
        )
        for name, found in groupby(rows, key=lambda row: str(row["name"])):
            sizes = {row["key"]: row["size_bytes"] for row in found}
            async with exclusive(stores.pool, name) as holder:
                unknown = await holder.fetch(
                    f"SELECT key FROM unnest($1::text[]) AS key WHERE NOT EXISTS ({area.known})", list(sizes)
                )
                if not dry_run:
                    await stores.objects.delete([row["key"] for row in unknown])
            finding.add(((row["key"], sizes[row["key"]]) for row in unknown), removed=not dry_run)
        if len(rows) < PAGE:
            return finding
        last = rows[-1]["key"]


async def _rows_without_objects(stores: Stores, dry_run: bool, connection: Connection, area: _Content) -> Finding:
    """Remove rows whose object is gone, so that it is made again when it is asked for; never those of originals."""
    finding = Finding(f"{area.table} whose object is gone")
    for column, size in area.columns:
        await _rows_without(stores, dry_run, connection, area, column, size, finding)
    return finding


async def _rows_without(
    stores: Stores, dry_run: bool, connection: Connection, area: _Content, column: str, size: str, finding: Finding
) -> None:
    """Remove rows without the object that ``column`` names."""
    last = ""
    while True:
        rows = await connection.fetch(
            f"""SELECT {column} AS key, {size} AS size_bytes, {area.name} AS name FROM {area.table}
                WHERE {column} > $1 AND NOT EXISTS (SELECT 1 FROM listed WHERE listed.key = {column})
                ORDER BY {column} LIMIT $2""",
            last,
            PAGE,
            timeout=_COMPARING_SECONDS,
        )
        for row in rows:
            async with exclusive(stores.pool, str(row["name"])) as holder:
                if await _is_missing(stores, row["key"]):
                    removed = not dry_run and area is not _TRACKS
                    finding.add([(row["key"], row["size_bytes"])], removed=removed)
                    if removed:
                        forget = area.forget or f"DELETE FROM {area.table}"
                        await holder.execute(
                            f"{forget} WHERE {area.name} = $1 AND {column} = $2", row["name"], row["key"]
                        )
        if len(rows) < PAGE:
            return
        last = rows[-1]["key"]


async def _is_missing(stores: Stores, key: str) -> bool:
    try:
        await stores.objects.size(key)
    except ObjectMissing:
        return True
    return False
