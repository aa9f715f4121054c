"""Puts right what crashes and lost queues leave behind, from what PostgreSQL says."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt

import asyncpg
from minio.error import MinioException
from urllib3.exceptions import HTTPError

from servers.orchestrator.jobs.queue import JobQueue, QueueUnavailable
from servers.orchestrator.jobs.store import JobStore
from servers.platform import telemetry
from servers.platform.settings import Settings
from servers.storage import keys
from servers.storage.database import Pool
from servers.storage.objects import ObjectStore

INTERVAL_SECONDS = 5.0


class Reconciler:
    """Dispatches stranded jobs again and removes what nobody needs any more; any number may run at once."""

    def __init__(self, pool: Pool, objects: ObjectStore, store: JobStore, queue: JobQueue, settings: Settings) -> None:
        self._pool = pool
        self._objects = objects
        self._store = store
        self._queue = queue
        self._settings = settings

    async def run(self) -> None:
        """Reconcile every few seconds until cancelled."""
        while True:
            with contextlib.suppress(QueueUnavailable):
                try:
                    await self.dispatch_stranded()
                    await self.remove_stale_uploads()
                    await self.remove_live_pieces()
                    await self.measure()
                except (
                    OSError,
                    asyncpg.PostgresError,
                    asyncpg.InterfaceError,
                    MinioException,
                    HTTPError,
                ) as error:
                    telemetry.log().warning("not reconciled", error=type(error).__name__)
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
        telemetry.QUEUE_JOBS.clear()
        telemetry.QUEUE_OLDEST_SECONDS.clear()
        for row in await self._store.counts():
            telemetry.QUEUE_JOBS.labels(row["state"], row["priority"]).set(row["jobs"])
            if row["state"] == "QUEUED":
                telemetry.QUEUE_OLDEST_SECONDS.labels(row["priority"]).set(row["oldest"])
