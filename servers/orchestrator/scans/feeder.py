"""Feeds scans: gives each of them a few jobs at a time, and takes note of those that have ended.

A chore, so that one worker does it at a time. All that it knows is in the tables, and each step is one transaction:
whoever dies in between leaves nothing half done, and two at once do nothing twice.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid5

from contrafact.v1 import job_pb2
from google.protobuf import json_format

from servers.analyzer.version import ANALYZER
from servers.orchestrator.analyses.features import version
from servers.orchestrator.jobs import locks
from servers.orchestrator.jobs.chores import Chore
from servers.orchestrator.jobs.load import Load
from servers.orchestrator.jobs.queue import JobQueue, QueueUnavailable
from servers.orchestrator.jobs.store import FINAL_STATES, JobStore, NewJob
from servers.orchestrator.scans.items import Fate, after_job, settle, without_job
from servers.orchestrator.scans.listing import LISTED, Lister
from servers.platform import telemetry
from servers.platform.settings import Settings
from servers.storage.database import Connection, Pool, Row
from servers.storage.objects import ObjectStore

ABANDONED = dt.timedelta(days=1)  # after so long without a name, a scan whose names were streamed is complete
_PAGE = 1000  # items looked at in one transaction
_PAGES = 10  # of one scan before others have their turn
_SCANS = 100  # in one round


def chores(
    pool: Pool, objects: ObjectStore, jobs: JobStore, queue: JobQueue, load: Load, settings: Settings
) -> list[Chore]:
    """What a worker does for scans."""
    return [
        Chore("scans", 1.0, 60.0, Feeder(pool, jobs, queue, load, settings).round),
        Chore("scan_sources", 1.0, 300.0, Lister(pool, objects).round),
    ]


class Feeder:
    """Sees to the items of scans."""

    def __init__(self, pool: Pool, jobs: JobStore, queue: JobQueue, load: Load, settings: Settings) -> None:
        self._pool = pool
        self._jobs = jobs
        self._queue = queue
        self._load = load
        self._settings = settings

    async def round(self) -> dict[str, Any]:
        """Give every scan that has something to do one turn, the one whose last turn is longest ago first."""
        await self._pool.execute(
            f"""UPDATE scans SET complete = true
                WHERE ended_at IS NULL AND NOT complete AND NOT {LISTED} AND named_at < now() - $1::interval""",
            ABANDONED,
        )
        scans = await self._pool.fetch(
            """SELECT id FROM scans WHERE ended_at IS NULL
                 AND (complete OR existing + analyzed + skipped + failed < total)
               ORDER BY fed_at LIMIT $1""",
            _SCANS,
        )
        created = 0
        for scan in scans:
            try:
                created += await self._turn(scan["id"])
            except Exception as error:  # whatever it is, the others must have their turn, and this one not be first
                telemetry.log().warning("scan not fed", scan_id=str(scan["id"]), error=type(error).__name__)
                await self._pool.execute("UPDATE scans SET fed_at = now() WHERE id = $1", scan["id"])
        if created:
            with suppress(QueueUnavailable):  # the dispatcher does it
                await self._queue.wake(created)
        return {"scans": len(scans), "jobs": created}

    async def _turn(self, scan_id: UUID) -> int:
        """Do what can be done for a scan now; returns how many jobs it got."""
        created = page = 0
        for _ in range(_PAGES):
            async with self._pool.acquire() as connection, connection.transaction():
                # With this lock nobody else changes its items, but who deletes a track.
                scan = await connection.fetchrow(
                    "SELECT * FROM scans WHERE id = $1 AND ended_at IS NULL FOR NO KEY UPDATE", scan_id
                )
                if scan is None:  # ended or cancelled meanwhile
                    return created
                ended = await self._ended(connection, scan)
                started = await self._next(connection, scan, page)
                await _end_if_done(connection, scan_id)
            jobs = sum(fate.busy for fate in started)
            created += jobs
            if len(ended) < _PAGE and jobs == len(started):
                break
            page = 0 if jobs else _PAGE  # all were done at sight, as many of the next may be
        return created

    async def _ended(self, connection: Connection, scan: Row) -> list[Fate]:
        """Take note of jobs that have ended."""
        rows = await connection.fetch(
            """SELECT number, item.track_id, item.job_id, tries, kind, job.state, job.error, job.track_id AS made,
                      timings @> '[{"stage": "ANALYZE"}]' AS worked
               FROM scan_items item LEFT JOIN jobs job ON job.id = item.job_id
               WHERE scan_id = $1 AND busy AND (job.id IS NULL OR job.state = ANY($2))
               ORDER BY number LIMIT $3""",
            scan["id"],
            FINAL_STATES,
            _PAGE,
        )
        # Those whose new track is being deleted at this moment have their turn when it is gone.
        made = await _kept(connection, (row["made"] for row in rows if row["kind"] == "IMPORT"))
        fates = [after_job(row) for row in rows if row["kind"] != "IMPORT" or row["made"] in made]
        await settle(connection, scan["id"], fates)
        return fates

    async def _next(self, connection: Connection, scan: Row, page: int) -> list[Fate]:
        """Be done at sight with the first items that wait, and give jobs to as many others as there is room for.

        So many items are looked at, or ``page`` if that is more.
        """
        room = await self._room(connection, scan)
        if room <= 0:
            return []
        rows = await connection.fetch(
            """SELECT number, object, item.track_id, job_id, tries, sha256,
                      coalesce(analyzer::integer >= $2 AND coalesce(sounds.model, $4) = $4, false) AS analyzed
               FROM (SELECT * FROM scan_items
                     WHERE scan_id = $1 AND state = 'WAITING' AND NOT busy AND not_before <= now()
                     ORDER BY not_before, number LIMIT $3) AS item
                    LEFT JOIN tracks ON tracks.id = item.track_id LEFT JOIN analyses USING (sha256)
                    LEFT JOIN sounds ON sounds.track_id = item.track_id
               ORDER BY not_before, number""",
            scan["id"],
            int(ANALYZER),
            max(page, room),
            self._settings.embedding_model,
        )
        fates: list[Fate] = []
        wanting: list[Row] = []
        for row in rows:
            if (fate := without_job(row)) is not None:
                fates.append(fate)
            elif len(wanting) < room:
                wanting.append(row)
        fates += await self._with_jobs(connection, scan, wanting)
        await settle(connection, scan["id"], fates)
        return fates

    async def _room(self, connection: Connection, scan: Row) -> int:
        """How many jobs the scan may get now. Half of an owner's places are left for what he asks for himself."""
        settings = self._settings
        busy = await connection.fetchval("SELECT count(*) FROM scan_items WHERE scan_id = $1 AND busy", scan["id"])
        share = max(1, settings.max_queued_jobs_per_owner // 2)
        waiting = await self._jobs.waiting(scan["owner"], share)
        return int(
            min(
                settings.scan_jobs - busy,
                share - waiting,
                settings.max_queued_jobs - self._load.queued("BACKGROUND"),
                _PAGE,
            )
        )

    async def _with_jobs(self, connection: Connection, scan: Row, rows: Sequence[Row]) -> list[Fate]:
        """Create jobs for items; those whose track is being deleted at this moment go on waiting."""
        tracks = await _kept(connection, (row["track_id"] for row in rows))
        fates = []
        for row in rows:
            if row["track_id"] in tracks:
                job, _ = await self._jobs.create(self._job(scan, row), connection)
                fates.append(Fate(row["number"], busy=True, job_id=job["id"]))
        return fates

    def _job(self, scan: Row, item: Row) -> NewJob:
        """The job that an item needs next."""
        spec: job_pb2.ImportSpec | job_pb2.AnalysisSpec
        if item["track_id"] is None:
            kind, lock = "IMPORT", locks.of_import(scan["owner"], item["object"])
            spec = job_pb2.ImportSpec(object=item["object"], tags=scan["spec"].get("tags", []))
        else:
            kind, lock = "ANALYZE", locks.of_analysis(item["sha256"], version(self._settings.embedding_model))
            spec = job_pb2.AnalysisSpec(track=f"tracks/{item['track_id']}")
        return NewJob(
            scan["owner"],
            uuid5(scan["id"], f"{item['number']} {kind} {item['tries']}"),
            kind,
            "BACKGROUND",
            json_format.MessageToDict(spec, preserving_proto_field_name=True),
            item["track_id"],
            scan["headers"],
            lock=lock,
        )


async def _kept(connection: Connection, tracks: Iterable[UUID | None]) -> set[UUID | None]:
    """Those of the tracks, and None, that nobody is deleting, nor will before the transaction's end."""
    rows = await connection.fetch(
        "SELECT id FROM tracks WHERE id = ANY($1) FOR KEY SHARE SKIP LOCKED",
        [track for track in tracks if track is not None],
    )
    return {None, *(row["id"] for row in rows)}


async def _end_if_done(connection: Connection, scan_id: UUID) -> None:
    await connection.execute(
        """UPDATE scans SET ended_at = now()
           WHERE id = $1 AND complete AND ended_at IS NULL AND existing + analyzed + skipped + failed = total""",
        scan_id,
    )
