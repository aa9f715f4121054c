"""Puts right what crashes and lost queues leave behind, from what PostgreSQL says."""

from __future__ import annotations

import asyncio
import datetime as dt
import time

from servers.orchestrator.jobs.queue import JobQueue
from servers.orchestrator.jobs.store import JobStore
from servers.platform import telemetry
from servers.platform.settings import Settings
from servers.storage import keys
from servers.storage.database import Pool, exclusive
from servers.storage.objects import ObjectStore

INTERVAL_SECONDS = 5.0
ORPHANS_SECONDS = 600.0


class Reconciler:
    """Dispatches stranded jobs again and removes what nobody needs any more; any number may run at once."""

    def __init__(self, pool: Pool, objects: ObjectStore, store: JobStore, queue: JobQueue, settings: Settings) -> None:
        self._pool = pool
        self._objects = objects
        self._store = store
        self._queue = queue
        self._settings = settings
        self._orphans_at = 0.0
        self._orphan_covers_at = 0.0

    async def run(self) -> None:
        """Reconcile every few seconds until cancelled."""
        while True:
            for step in (
                self.dispatch_stranded,
                self.remove_stale_uploads,
                self.remove_orphan_pieces,
                self.remove_orphan_covers,
                self.remove_live_pieces,
                self.measure,
            ):
                try:
                    await step()
                except Exception as error:  # whatever it is, the other steps and the next round must come
                    telemetry.log().warning("not reconciled", step=step.__name__, error=type(error).__name__)
            await asyncio.sleep(INTERVAL_SECONDS)

    async def dispatch_stranded(self) -> None:
        """Dispatch jobs that wait although the queue may have lost them, and those whose worker died."""
        lease = self._settings.lease_seconds
        for row in await self._store.stranded(queued_seconds=INTERVAL_SECONDS, lease_seconds=lease):
            # Waiting jobs keep their id in the queue, so this changes nothing where they are still in it.
            await self._queue.enqueue(row["id"], row["priority"], row["attempt"])

    async def remove_stale_uploads(self) -> None:
        """Remove uploads that nobody went on with for longer than their time to live."""
        ttl = dt.timedelta(seconds=self._settings.upload_ttl_seconds)
        rows = await self._pool.fetch("SELECT id FROM uploads WHERE updated_at < now() - $1::interval LIMIT 100", ttl)
        for row in rows:
            await self._objects.delete_prefix(keys.upload_prefix(row["id"]))
            await self._pool.execute(
                "DELETE FROM uploads WHERE id = $1 AND updated_at < now() - $2::interval", row["id"], ttl
            )

    async def remove_orphan_pieces(self) -> None:
        """Remove pieces of uploads that do not exist: a URL to put them outlives the upload it was made for."""
        if time.monotonic() < self._orphans_at:
            return
        self._orphans_at = time.monotonic() + ORPHANS_SECONDS
        found = {key.split("/")[1] for key in await self._objects.find("uploads/")}
        known = await self._pool.fetch("SELECT id FROM uploads WHERE id::text = ANY($1)", list(found))
        for orphan in found - {str(row["id"]) for row in known}:
            await self._objects.delete_prefix(f"uploads/{orphan}/")

    async def remove_orphan_covers(self) -> None:
        """Remove the bytes of covers that no row names: their job crashed or was cancelled before it ended."""
        if time.monotonic() < self._orphan_covers_at:
            return
        self._orphan_covers_at = time.monotonic() + ORPHANS_SECONDS
        found = await self._objects.find("covers/")
        known = await self._pool.fetch("SELECT object_key FROM covers WHERE object_key = ANY($1)", found)
        for orphan in set(found) - {row["object_key"] for row in known}:
            # Whoever publishes it at this moment has put the bytes, and not yet the row.
            async with exclusive(self._pool, orphan.split("/")[1]) as connection:
                if not await connection.fetchval("SELECT 1 FROM covers WHERE object_key = $1", orphan):
                    await self._objects.delete([orphan])

    async def remove_live_pieces(self) -> None:
        """Remove the live pieces of jobs that have ended: whoever still listens reads the finished stems."""
        rows = await self._pool.fetch(
            """SELECT DISTINCT job_id FROM live_pieces JOIN jobs ON jobs.id = job_id
               WHERE state IN ('SUCCEEDED', 'FAILED', 'CANCELLED') LIMIT 100"""
        )
        for row in rows:
            await self._objects.delete_prefix(keys.live_prefix(row["job_id"]))
            await self._pool.execute("DELETE FROM live_pieces WHERE job_id = $1", row["job_id"])

    async def measure(self) -> None:
        """Export how many jobs wait and for how long."""
        rows = await self._store.counts()
        telemetry.QUEUE_JOBS.clear()
        telemetry.QUEUE_OLDEST_SECONDS.clear()
        for row in rows:
            telemetry.QUEUE_JOBS.labels(row["state"], row["priority"]).set(row["jobs"])
            if row["state"] == "QUEUED":
                telemetry.QUEUE_OLDEST_SECONDS.labels(row["priority"]).set(row["oldest"])
