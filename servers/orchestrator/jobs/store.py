"""Rows of jobs: every change a job can make, each in one statement.

A worker's writes carry its attempt number and change nothing once a newer attempt exists or the job has
ended (fencing); they then raise :class:`LeaseLost`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from servers.storage.database import Connection, Pool, Row

FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELLED")


class LeaseLost(Exception):
    """Another attempt has taken over, or the job has ended."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a job is created from; ``spec`` is the JSON form of the kind's proto message."""

    owner: str
    request_id: UUID
    kind: str
    priority: str
    spec: dict[str, Any]
    track_id: UUID
    headers: dict[str, str]
    voice_id: UUID | None = None


def _telling(change: str) -> str:
    """A statement that makes this ``change`` and, if it ends the job, notes whom to tell: URLs are its ``$1``."""
    return f"""WITH changed AS ({change} RETURNING *),
                    told AS (INSERT INTO webhook_deliveries (id, job_id, url)
                             SELECT gen_random_uuid(), changed.id, url FROM changed, unnest($1::text[]) AS url
                             WHERE ended_at = now() ON CONFLICT DO NOTHING)
               SELECT * FROM changed"""


class JobStore:
    """The table of jobs; ``webhook_urls`` are told of those that end."""

    def __init__(self, pool: Pool, webhook_urls: Sequence[str] = ()) -> None:
        self._pool = pool
        self._webhook_urls = list(webhook_urls)

    async def create(self, job: NewJob) -> tuple[Row, bool]:
        """Insert a job, or find the one that the same request made; say whether it is new."""
        row = await self._pool.fetchrow(
            """INSERT INTO jobs (id, owner, request_id, kind, priority, track_id, spec, headers, voice_id)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
               ON CONFLICT (owner, request_id) DO NOTHING RETURNING *""",
            uuid4(),
            job.owner,
            job.request_id,
            job.kind,
            job.priority,
            job.track_id,
            job.spec,
            job.headers,
            job.voice_id,
        )
        if row is not None:
            return row, True
        row = await self.find(job.owner, job.request_id)
        assert row is not None
        return row, False

    async def find(self, owner: str, request_id: UUID) -> Row | None:
        """The job that a request made, if any."""
        return await self._pool.fetchrow("SELECT * FROM jobs WHERE owner = $1 AND request_id = $2", owner, request_id)

    async def get(self, job_id: UUID, owner: str | None = None) -> Row | None:
        """A job, if it exists and belongs to ``owner`` (None: to anyone)."""
        return await self._pool.fetchrow(
            "SELECT * FROM jobs WHERE id = $1 AND ($2::text IS NULL OR owner = $2)", job_id, owner
        )

    async def page(
        self,
        owner: str,
        limit: int,
        before: tuple[dt.datetime, UUID] | None,
        states: Sequence[str],
        track_id: UUID | None,
    ) -> list[Row]:
        """Jobs of ``owner``, newest first, those created before the position ``before``."""
        created_at, job_id = before or (None, None)
        return await self._pool.fetch(
            """SELECT * FROM jobs
               WHERE owner = $1
                 AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
                 AND (cardinality($4::text[]) = 0 OR state = ANY($4))
                 AND ($5::uuid IS NULL OR track_id = $5)
               ORDER BY created_at DESC, id DESC LIMIT $6""",
            owner,
            created_at,
            job_id,
            list(states),
            track_id,
            limit,
        )

    async def stems(self, job_ids: Sequence[UUID]) -> list[Row]:
        """The stored stems of jobs, with ``job_id``."""
        return await self._pool.fetch(
            """SELECT job_id, stems.* FROM job_stems JOIN stems USING (sha256, model, stem, format)
               WHERE job_id = ANY($1) ORDER BY created_at, stem""",
            list(job_ids),
        )

    async def covers(self, job_ids: Sequence[UUID]) -> list[Row]:
        """The stored covers of jobs, with ``job_id``."""
        return await self._pool.fetch(
            "SELECT job_id, covers.* FROM job_covers JOIN covers ON id = cover_id WHERE job_id = ANY($1)",
            list(job_ids),
        )

    async def results(self, job_ids: Sequence[UUID]) -> list[Row]:
        """All that jobs have stored: stems, then covers."""
        return [*await self.stems(job_ids), *await self.covers(job_ids)]

    async def queue_position(self, row: Row) -> int:
        """How many waiting jobs a worker would start before this one ('INTERACTIVE' > 'BACKGROUND')."""
        if row["state"] != "QUEUED":
            return 0
        return int(
            await self._pool.fetchval(
                """SELECT count(*) FROM jobs WHERE state = 'QUEUED' AND id <> $1
                     AND (priority > $2 OR (priority = $2 AND created_at < $3))""",
                row["id"],
                row["priority"],
                row["created_at"],
            )
        )

    async def claim(self, job_id: UUID, lease_seconds: float) -> Row | None:
        """Begin the next attempt at a job, unless it has ended, a live worker is at it, or it is too early.

        An attempt whose lease ran out counts as a failure; one that was handed back does not.
        """
        return await self._pool.fetchrow(
            """UPDATE jobs SET state = 'RUNNING', attempt = attempt + 1, heartbeat_at = now(),
                               failures = failures + (state = 'RUNNING')::int,
                               started_at = coalesce(started_at, now()),
                               stage = 'UNSPECIFIED', fraction = 0, eta_seconds = NULL
               WHERE id = $1 AND ((state = 'QUEUED' AND not_before <= now())
                                  OR (state = 'RUNNING' AND heartbeat_at < now() - $2::interval))
               RETURNING *""",
            job_id,
            dt.timedelta(seconds=lease_seconds),
        )

    async def beat(self, job_id: UUID, attempt: int, stage: str, fraction: float, eta: float | None) -> bool:
        """Renew the lease and store progress; returns whether the job is to be cancelled."""
        cancel = await self._pool.fetchval(
            """UPDATE jobs SET heartbeat_at = now(), stage = $3, fraction = $4, eta_seconds = $5
               WHERE id = $1 AND attempt = $2 AND state = 'RUNNING' RETURNING cancel_requested""",
            job_id,
            attempt,
            stage,
            fraction,
            eta,
        )
        if cancel is None:
            raise LeaseLost
        return bool(cancel)

    async def hold(self, connection: Connection, job_id: UUID, attempt: int) -> None:
        """Within a transaction: make sure that the attempt is live, and keep it so until the end."""
        held = await connection.fetchval(
            "SELECT 1 FROM jobs WHERE id = $1 AND attempt = $2 AND state = 'RUNNING' FOR UPDATE",
            job_id,
            attempt,
        )
        if held is None:
            raise LeaseLost

    async def finish(
        self,
        job_id: UUID,
        attempt: int,
        state: str,
        *,
        error: dict[str, Any] | None = None,
        warnings: Sequence[str] = (),
        timings: Sequence[dict[str, Any]] = (),
    ) -> Row:
        """Put a running job into a final state; one that was to be cancelled does not fail any more."""
        row = await self._pool.fetchrow(
            _telling(
                """UPDATE jobs SET state = CASE WHEN $4 = 'FAILED' AND cancel_requested THEN 'CANCELLED' ELSE $4 END,
                                   error = CASE WHEN cancel_requested THEN NULL ELSE $5::jsonb END,
                                   warnings = $6, timings = $7, ended_at = now(),
                                   stage = 'UNSPECIFIED', eta_seconds = NULL,
                                   fraction = CASE WHEN $4 = 'SUCCEEDED' THEN 1 ELSE fraction END
                   WHERE id = $2 AND attempt = $3 AND state = 'RUNNING'"""
            ),
            self._webhook_urls,
            job_id,
            attempt,
            state,
            error,
            list(warnings),
            list(timings),
        )
        if row is None:
            raise LeaseLost
        return row

    async def hand_back(self, job_id: UUID, attempt: int, *, retry_in: float | None = None) -> None:
        """Return a running job to the queue: this worker stops, or (``retry_in`` seconds) the attempt failed."""
        await self._pool.execute(
            """UPDATE jobs SET state = 'QUEUED', heartbeat_at = NULL, stage = 'UNSPECIFIED', fraction = 0,
                               eta_seconds = NULL, failures = failures + ($3::interval IS NOT NULL)::int,
                               not_before = now() + coalesce($3, '0 s')
               WHERE id = $1 AND attempt = $2 AND state = 'RUNNING'""",
            job_id,
            attempt,
            None if retry_in is None else dt.timedelta(seconds=retry_in),
        )

    async def cancel(self, job_id: UUID, owner: str) -> Row | None:
        """Cancel a waiting job, or ask the worker of a running one to; None if there is none."""
        return await self._pool.fetchrow(
            _telling(
                """UPDATE jobs SET
                       cancel_requested = cancel_requested OR state IN ('QUEUED', 'RUNNING'),
                       ended_at = CASE WHEN state = 'QUEUED' THEN now() ELSE ended_at END,
                       state = CASE WHEN state = 'QUEUED' THEN 'CANCELLED' ELSE state END
                   WHERE id = $2 AND owner = $3"""
            ),
            self._webhook_urls,
            job_id,
            owner,
        )

    async def unfinished_of_track(self, track_id: UUID) -> list[UUID]:
        """Jobs of a track that have not ended."""
        rows = await self._pool.fetch(
            "SELECT id FROM jobs WHERE track_id = $1 AND state IN ('QUEUED', 'RUNNING')", track_id
        )
        return [row["id"] for row in rows]

    async def stranded(self, queued_seconds: float, lease_seconds: float) -> list[Row]:
        """Jobs that nobody seems to be at: long in the queue, or without a sign of life."""
        return await self._pool.fetch(
            """SELECT * FROM jobs
               WHERE (state = 'QUEUED' AND created_at < now() - $1::interval AND not_before <= now())
                  OR (state = 'RUNNING' AND heartbeat_at < now() - $2::interval)
               ORDER BY priority DESC, created_at LIMIT 1000""",
            dt.timedelta(seconds=queued_seconds),
            dt.timedelta(seconds=lease_seconds),
        )

    async def counts(self) -> list[Row]:
        """Unfinished jobs by state and priority, with the age of the oldest in seconds."""
        return await self._pool.fetch(
            """SELECT state, priority, count(*) AS jobs,
                      extract(epoch FROM now() - min(created_at))::float8 AS oldest
               FROM jobs WHERE state IN ('QUEUED', 'RUNNING') GROUP BY state, priority"""
        )
