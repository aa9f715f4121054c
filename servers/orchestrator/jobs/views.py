"""Jobs as their owners see them: with results, place in the queue, ETA, and the progress of who does their work.

A waiting job whose work another job is doing (one that holds the same lock) is seen as running, as far as that is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from contrafact.v1 import job_pb2

from servers.orchestrator.jobs import messages
from servers.orchestrator.jobs.load import Load
from servers.orchestrator.jobs.store import JobStore
from servers.storage.database import Pool, Row


@dataclass(frozen=True, slots=True)
class Seen:
    """A job and whose it is."""

    owner: str
    job: job_pb2.Job


class JobViews:
    """Makes messages of rows; the number of statements does not depend on the number of rows."""

    def __init__(self, pool: Pool, store: JobStore, load: Load) -> None:
        self._pool = pool
        self._store = store
        self._load = load

    async def job(self, row: Row) -> job_pb2.Job:
        """A row of ``jobs`` as a job."""
        return (await self.jobs([row]))[0]

    async def jobs(self, rows: Sequence[Row]) -> list[job_pb2.Job]:
        """Rows of ``jobs`` as jobs."""
        if not rows:
            return []
        results = defaultdict(list)
        for result in await self._store.results([row["id"] for row in rows]):
            results[result["job_id"]].append(result)
        waiting = await self._waiting([row["id"] for row in rows if row["state"] == "QUEUED"])
        jobs = []
        for row in rows:
            job = messages.job(row, results[row["id"]])
            if row["id"] in waiting:
                self._place(job, waiting[row["id"]])
            jobs.append(job)
        return jobs

    async def look_up(self, job_ids: Sequence[UUID]) -> dict[UUID, Seen]:
        """The jobs of these ids that there are."""
        rows = await self._pool.fetch("SELECT * FROM jobs WHERE id = ANY($1)", list(job_ids))
        jobs = await self.jobs(rows)
        return {row["id"]: Seen(row["owner"], job) for row, job in zip(rows, jobs, strict=True)}

    async def _waiting(self, job_ids: list[UUID]) -> dict[UUID, Row]:
        """Of those that wait: how many go before, how long the audio is, and how far their leader is."""
        if not job_ids:
            return {}
        # In the order in which they are claimed, of which one index knows all. Each row counts those between the one
        # before it here and itself, so that all together read the queue once, up to the last of them. Followers take
        # no turn.
        rows = await self._pool.fetch(
            """WITH leaders AS MATERIALIZED (
                   SELECT lock, stage, fraction, eta_seconds FROM jobs WHERE state = 'RUNNING' AND lock IS NOT NULL
               ), followers AS MATERIALIZED (
                   SELECT priority, turn, created_at FROM jobs JOIN leaders USING (lock) WHERE state = 'QUEUED'
               ), asked AS MATERIALIZED (
                   SELECT id, kind, lock, priority, turn, created_at, track_id,
                          lag(turn, 1, -1::bigint) OVER turns AS turn_before,
                          lag(created_at, 1, '-infinity') OVER turns AS created_before
                   FROM jobs WHERE id = ANY($1) AND state = 'QUEUED'
                   WINDOW turns AS (PARTITION BY priority ORDER BY turn, created_at)
               )
               SELECT asked.id, kind, frames::float8 / sample_rate AS seconds,
                      leaders.lock IS NOT NULL AS led, stage, fraction, eta_seconds,
                      (sum((SELECT count(*) FROM jobs WHERE state = 'QUEUED' AND jobs.priority = asked.priority
                              AND (jobs.turn, jobs.created_at) >= (turn_before, created_before)
                              AND (jobs.turn, jobs.created_at) < (asked.turn, asked.created_at)))
                         OVER (PARTITION BY priority ORDER BY turn, asked.created_at)
                       + CASE priority WHEN 'INTERACTIVE' THEN 0 ELSE
                           (SELECT count(*) FROM jobs WHERE state = 'QUEUED' AND priority = 'INTERACTIVE') END
                       - (SELECT count(*) FROM followers WHERE followers.priority > asked.priority
                             OR (followers.priority = asked.priority
                                 AND (followers.turn, followers.created_at) < (asked.turn, asked.created_at)))
                      )::integer AS position
               FROM asked LEFT JOIN leaders USING (lock)
                    LEFT JOIN tracks ON tracks.id = track_id LEFT JOIN recordings USING (sha256)""",
            job_ids,
        )
        return {row["id"]: row for row in rows}

    def _place(self, job: job_pb2.Job, place: Row) -> None:
        if place["led"]:
            job.state = job_pb2.JOB_STATE_RUNNING
            job.stage = job_pb2.Stage.Value(f"STAGE_{place['stage']}")
            job.fraction = place["fraction"]
            eta = place["eta_seconds"]
        else:
            job.queue_position = place["position"]
            eta = self._load.eta(place["kind"], place["position"], place["seconds"])
        if (estimate := messages.duration(eta)) is not None:
            job.eta.CopyFrom(estimate)
