"""Keeps the model's voice pool as the database wants it, and finishes what crashes left of voices."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import UUID

from servers.inference.triton import TritonError
from servers.inference.voices import VoiceModel
from servers.orchestrator.voices import deletion
from servers.orchestrator.voices.pool import PoolReports, Report, forget
from servers.orchestrator.voices.store import VoiceStore, files_of
from servers.platform import telemetry
from servers.platform.settings import Settings
from servers.platform.tasks import Background
from servers.storage import keys
from servers.storage.database import Connection, Pool, Row
from servers.storage.objects import ObjectStore

INTERVAL_SECONDS = 2.0
ORPHANS_SECONDS = 600.0
_LOCK = "voice reconciler"


def model_settings(row: Row) -> dict[str, Any]:
    """Of the pool's settings those that the model knows."""
    return {name: row[name] for name in ("enabled", "capacity", "idle_seconds", "strategy")}


class VoiceReconciler(Background):
    """Reconciles every two seconds; of any number of these, one acts at a time. Used as a context manager."""

    def __init__(
        self,
        pool: Pool,
        objects: ObjectStore,
        store: VoiceStore,
        model: VoiceModel,
        reports: PoolReports,
        settings: Settings,
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._store = store
        self._model = model
        self._reports = reports
        self._settings = settings
        self._orphans_at = 0.0
        self._complaints: dict[str, str] = {}  # by step: each is logged once, until the step works again

    async def _work(self) -> None:
        while True:
            try:
                async with self._pool.acquire() as connection:
                    if await connection.fetchval("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", _LOCK):
                        await self._lead(connection)  # the lock goes when the connection is given back
            except Exception as error:
                self._complain("_lead", error)
                forget()
            await asyncio.sleep(INTERVAL_SECONDS)

    async def _lead(self, connection: Connection) -> None:
        """Act for as long as the connection, and with it the lock, lasts."""
        while True:
            await connection.execute("SELECT 1")
            for step in (self.reconcile_pool, self.remove_abandoned, self.remove_orphans):
                try:
                    await step()
                    self._complaints.pop(step.__name__, None)
                except Exception as error:  # whatever it is, the other steps and the next round must come
                    self._complain(step.__name__, error)
            self._complaints.pop("_lead", None)
            await asyncio.sleep(INTERVAL_SECONDS)

    def _complain(self, step: str, error: Exception) -> None:
        name = type(error).__name__
        if self._complaints.get(step) != name:
            self._complaints[step] = name
            telemetry.log().warning("voices not reconciled", step=step, error=name)

    async def reconcile_pool(self) -> None:
        """Let the pool have its settings and no voice that it should not have, and tell all servers of it."""
        try:
            report = await self._model.report()
        except TritonError as error:
            if error.status == "DEADLINE_EXCEEDED" or error.busy:
                await self._reports.keep_on()
                return
            forget()
            await self._reports.keep(None)
            raise
        seen = await self._reports.counted()
        report = await self._configure(report)
        report = await self._evict_strangers(report)
        if seen.get("process") != report["process"]:
            report = await self._prewarm(report)
        await self._reports.count(report, seen)
        await self._reports.keep(report)

    async def _configure(self, report: Report) -> Report:
        row = await self._store.pool_settings()
        wanted = model_settings(row)
        same = all(report[name] == value for name, value in wanted.items())
        return report if same else await self._model.configure(wanted)

    async def _evict_strangers(self, report: Report) -> Report:
        """Make the model forget voices that were deleted while it, or we, could not be told."""
        there = {voice["voice"] for voice in report["voices"]} | set(report["disk"]["voices"])
        for stranger in await self._store.unknown(sorted(there), usable=True):
            report = await self._model.evict(UUID(stranger))
        return report

    async def _prewarm(self, report: Report) -> Report:
        """Load the voices that were used last: the model's process is new."""
        row = await self._store.pool_settings()
        if row["enabled"]:
            for voice in await self._store.recent(min(row["prewarm"], row["capacity"])):
                report = await self._model.warm(files_of(voice))
        return report

    async def remove_abandoned(self) -> None:
        """Remove what is left of deleted voices and of imports that died."""
        for voice_id in await self._store.abandoned(self._settings.voice_import_ttl_seconds):
            await deletion.remove(voice_id, self._store, self._objects, self._model)

    async def remove_orphans(self) -> None:
        """Remove objects of voices that have no row."""
        if time.monotonic() < self._orphans_at:
            return
        self._orphans_at = time.monotonic() + ORPHANS_SECONDS
        found = {key.split("/")[1] for key in await self._objects.find(keys.VOICES_PREFIX)}
        for orphan in await self._store.unknown(sorted(found), usable=False):
            await self._objects.delete_prefix(f"{keys.VOICES_PREFIX}{orphan}/")
