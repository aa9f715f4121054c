"""How long what could be made again, or is only history, is kept: ended jobs and scans, unused stems and layers."""

from __future__ import annotations

import datetime as dt
from itertools import groupby
from uuid import UUID

from servers.orchestrator.jobs.findings import PAGE, Finding, Stores
from servers.storage.database import Connection, Pool, Row, exclusive

_USED_ANEW = dt.timedelta(days=1)  # how exactly the last use is known


def _unused(table: str) -> str:
    """Whether nobody has used a row of ``table`` for the interval $1, and no job is to work on its recording."""
    return f"""used_at < now() - $1::interval AND NOT EXISTS (
                   SELECT 1 FROM jobs JOIN tracks ON tracks.id = track_id
                   WHERE tracks.sha256 = {table}.sha256 AND state IN ('QUEUED', 'RUNNING'))"""


_IDLE = f"""{_unused("stems")} AND NOT EXISTS (
                SELECT 1 FROM projects JOIN tracks ON tracks.id = track_id
                WHERE tracks.sha256 = stems.sha256 AND projects.model = split_part(stems.model, '-', 1))"""


async def stem_used(database: Pool | Connection, row: Row) -> None:
    """Note that a stored stem was taken by a job, or read by a client; at most once a day for each."""
    if dt.datetime.now(dt.UTC) - row["used_at"] < _USED_ANEW:
        return
    await database.execute(
        """UPDATE stems SET used_at = now() WHERE sha256 = $1 AND model = $2 AND stem = $3 AND format = $4
           AND used_at < now() - $5::interval""",
        row["sha256"],
        row["model"],
        row["stem"],
        row["format"],
        _USED_ANEW,
    )


async def ended_jobs(stores: Stores, dry_run: bool) -> list[Finding]:
    """Remove jobs that ended long ago, with all that is known of them; what they made stays."""
    finding = Finding("jobs that ended long ago")
    kept = dt.timedelta(days=stores.settings.job_retention_days)
    last = UUID(int=0)
    while True:
        rows = await stores.pool.fetch(
            """SELECT id FROM jobs WHERE ended_at < now() - $1::interval AND id > $2
               AND state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
               AND NOT EXISTS (SELECT 1 FROM live_pieces WHERE job_id = jobs.id) ORDER BY id LIMIT $3""",
            kept,
            last,
            PAGE,
        )
        found = [row["id"] for row in rows]
        if not dry_run:
            await stores.pool.execute("DELETE FROM jobs WHERE id = ANY($1)", found)
        finding.add(((f"jobs/{job}", 0) for job in found), removed=not dry_run)
        if len(rows) < PAGE:
            return [finding]
        last = found[-1]


async def ended_scans(stores: Stores, dry_run: bool) -> list[Finding]:
    """Remove scans that ended as long ago as jobs are kept, with their items; the tracks stay."""
    finding = Finding("scans that ended long ago")
    kept = dt.timedelta(days=stores.settings.job_retention_days)
    rows = await stores.pool.fetch(
        "SELECT id FROM scans WHERE ended_at < now() - $1::interval ORDER BY ended_at LIMIT $2", kept, PAGE
    )
    for row in rows:
        last = 0
        while not dry_run and last is not None:  # a scan may be large, and no statement should be
            last = await stores.pool.fetchval(
                """WITH page AS (SELECT number FROM scan_items WHERE scan_id = $1 AND number > $2
                                 ORDER BY number LIMIT $3),
                        gone AS (DELETE FROM scan_items USING page
                                 WHERE scan_id = $1 AND scan_items.number = page.number)
                   SELECT max(number) FROM page""",
                row["id"],
                last,
                PAGE,
            )
        if not dry_run:
            await stores.pool.execute("DELETE FROM scans WHERE id = $1", row["id"])
        finding.add([(f"scans/{row['id']}", 0)], removed=not dry_run)
    return [finding]


async def idle_stems(stores: Stores, dry_run: bool) -> list[Finding]:
    """Remove stems that nobody used for long, but none that a project needs, or of a recording that a job works on."""
    finding = Finding("stems nobody used for long")
    kept = dt.timedelta(days=stores.settings.stem_retention_days)
    last = ""
    while True:
        rows = await stores.pool.fetch(
            f"""SELECT sha256, object_key, size_bytes FROM stems WHERE {_IDLE} AND object_key > $2
                ORDER BY object_key LIMIT $3""",
            kept,
            last,
            PAGE,
        )
        for sha256, found in groupby(rows, key=lambda row: str(row["sha256"])):
            stems = list(found)
            if not dry_run:
                stems = await _remove_stems(stores, sha256, kept, [row["object_key"] for row in stems])
            finding.add(((row["object_key"], row["size_bytes"]) for row in stems), removed=not dry_run)
        if len(rows) < PAGE:
            return [finding]
        last = rows[-1]["object_key"]


async def _remove_stems(stores: Stores, sha256: str, kept: dt.timedelta, found: list[str]) -> list[Row]:
    """Remove those of the stems ``found`` that are still idle, and return them."""
    # Against who publishes the same anew between the two steps.
    async with exclusive(stores.pool, sha256) as connection:
        rows = await connection.fetch(
            f"""DELETE FROM stems WHERE {_IDLE} AND sha256 = $2 AND object_key = ANY($3)
                RETURNING object_key, size_bytes""",
            kept,
            sha256,
            found,
        )
        await stores.objects.delete([row["object_key"] for row in rows])
    return rows


async def idle_layers(stores: Stores, dry_run: bool) -> list[Finding]:
    """Remove layers that nobody used for long, but none of a recording that a job is to work on."""
    finding = Finding("layers nobody used for long")
    kept = dt.timedelta(days=stores.settings.layer_retention_days)
    last = UUID(int=0)
    while True:
        rows = await stores.pool.fetch(
            f"SELECT id, object_key, size_bytes FROM layers WHERE {_unused('layers')} AND id > $2 ORDER BY id LIMIT $3",
            kept,
            last,
            PAGE,
        )
        for row in rows:
            if not dry_run:
                # Against who publishes the same anew between the two steps.
                async with exclusive(stores.pool, str(row["id"])) as connection:
                    gone = await connection.fetchval(
                        f"DELETE FROM layers WHERE {_unused('layers')} AND id = $2 RETURNING object_key",
                        kept,
                        row["id"],
                    )
                    if gone is None:
                        continue
                    await stores.objects.delete([gone])
            finding.add([(row["object_key"], row["size_bytes"])], removed=not dry_run)
        if len(rows) < PAGE:
            return [finding]
        last = rows[-1]["id"]
