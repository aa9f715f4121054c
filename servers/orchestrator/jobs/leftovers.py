"""What crashes and broken connections leave: uploads nobody goes on with, live pieces of ended jobs, half transfers."""

from __future__ import annotations

import datetime as dt
from uuid import UUID

from servers.orchestrator.jobs.findings import PAGE, Finding, Stores
from servers.storage import keys

# An ended job may have left pieces from which another that is to do the same goes on.
_NEEDLESS = """jobs.id = live_pieces.job_id AND jobs.state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
               AND (jobs.state = 'SUCCEEDED' OR NOT EXISTS (
                        SELECT 1 FROM jobs AS other WHERE other.lock = jobs.lock AND other.state = 'QUEUED'
                        UNION ALL
                        SELECT 1 FROM jobs AS other WHERE other.lock = jobs.lock AND other.state = 'RUNNING'))"""
_FIRST = UUID(int=0)


async def stale_uploads(stores: Stores, dry_run: bool) -> list[Finding]:
    """Remove uploads, complete or not, that nobody asked for any more for longer than their time to live."""
    finding = Finding("uploads that have expired")
    ttl = dt.timedelta(seconds=stores.settings.upload_ttl_seconds)
    last = _FIRST
    while True:
        rows = await stores.pool.fetch(
            """SELECT id, CASE WHEN track_id IS NULL THEN committed_bytes ELSE 0 END AS size_bytes FROM uploads
               WHERE updated_at < now() - $1::interval AND id > $2 ORDER BY id LIMIT $3""",
            ttl,
            last,
            PAGE,
        )
        for row in rows:
            if not dry_run:
                # The row first: who goes on with it at this moment keeps it, with all its pieces.
                gone = await stores.pool.fetchval(
                    "DELETE FROM uploads WHERE id = $1 AND updated_at < now() - $2::interval RETURNING 1",
                    row["id"],
                    ttl,
                )
                if gone is None:
                    continue
                await stores.objects.delete_prefix(keys.upload_prefix(row["id"]))
            finding.add([(f"uploads/{row['id']}", row["size_bytes"])], removed=not dry_run)
        if len(rows) < PAGE:
            return [finding]
        last = rows[-1]["id"]


async def live_pieces(stores: Stores, dry_run: bool) -> list[Finding]:
    """Remove the live pieces of jobs that have ended: whoever still listens reads the finished result."""
    finding = Finding("live pieces of ended jobs")
    last = _FIRST
    while True:
        rows = await stores.pool.fetch(
            f"""SELECT job_id, sum(size_bytes)::bigint AS size_bytes FROM live_pieces JOIN jobs ON {_NEEDLESS}
                WHERE job_id > $1 GROUP BY job_id ORDER BY job_id LIMIT $2""",
            last,
            PAGE,
        )
        for row in rows:
            if not dry_run:
                # The rows first: whoever looks for something to go on from finds nothing, not what is vanishing.
                await stores.pool.execute(
                    f"DELETE FROM live_pieces USING jobs WHERE job_id = $1 AND {_NEEDLESS}", row["job_id"]
                )
                if await stores.pool.fetchval("SELECT 1 FROM live_pieces WHERE job_id = $1 LIMIT 1", row["job_id"]):
                    continue  # somebody came to need them
                await stores.objects.delete_prefix(keys.live_prefix(row["job_id"]))
            finding.add([(f"jobs/{row['job_id']}", row["size_bytes"])], removed=not dry_run)
        if len(rows) < PAGE:
            return [finding]
        last = rows[-1]["job_id"]


async def half_transfers(stores: Stores, dry_run: bool) -> list[Finding]:
    """Give up multipart uploads to the object store that were never completed; their parts cost space unseen."""
    finding = Finding("object store transfers never completed")
    before = dt.datetime.now(dt.UTC) - dt.timedelta(days=stores.settings.half_transfer_days)
    async for page in stores.objects.half_transfers():
        for transfer in page:
            if transfer.begun <= before:
                if not dry_run:
                    await stores.objects.give_up(transfer)
                finding.add([(transfer.key, 0)], removed=not dry_run)
    return [finding]
