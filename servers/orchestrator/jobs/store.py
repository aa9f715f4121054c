"""Rows of jobs: every change a job can make, each in one statement.

A worker's writes carry its attempt number and change nothing once a newer attempt exists or the job has
ended (fencing); they then raise :class:`LeaseLost`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from servers.storage.database import Connection, Pool, Row

FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELLED")
_FIND = "SELECT * FROM jobs WHERE owner = $1 AND request_id = $2"
_RACES = 3  # lost before a claim is given up: the next ticket tries again


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
    track_id: UUID | None
    headers: dict[str, str]
    voice_id: UUID | None = None
    lock: str | None = None
    after: Sequence[UUID] = ()


def _ready(table: str) -> str:
    """Whether a waiting job may begin.

    Not before its time, nor before the jobs that it comes after have ended, nor while the same is done or, for a
    person, to be done.
    """
    return f"""{table}.not_before <= now()
        AND NOT EXISTS (SELECT 1 FROM jobs AS former
                        WHERE former.id = ANY({table}.after) AND former.state IN ('QUEUED', 'RUNNING'))
        AND NOT EXISTS (SELECT 1 FROM jobs AS same WHERE same.lock = {table}.lock AND same.state = 'RUNNING')
        AND ({table}.priority = 'INTERACTIVE' OR NOT EXISTS (
                 SELECT 1 FROM jobs AS same
                 WHERE same.lock = {table}.lock AND same.state = 'QUEUED' AND same.priority = 'INTERACTIVE'))"""


def _first_turn(priority: str) -> str:
    """The turn of the first job of a priority that could begin: a job that comes back takes that place."""
    return f"""(SELECT first.turn FROM jobs AS first
                WHERE first.state = 'QUEUED' AND first.priority = {priority} AND {_ready("first")}
                ORDER BY first.turn LIMIT 1)"""


# What is remembered of an attempt that ends; {outcome}, {reason} and {message} are SQL.
_ATTEMPT = """attempts || jsonb_build_object('number', attempt, 'worker', worker, 'started', claimed_at,
                                             'ended', now(), 'outcome', {outcome}, 'reason', {reason},
                                             'message', {message})"""


def _telling(change: str, returning: str = "*") -> str:
    """A statement that makes this ``change`` and, of jobs that it ends, notes whom to tell: URLs are its ``$1``."""
    return f"""WITH changed AS ({change} RETURNING {returning}),
                    told AS (INSERT INTO webhook_deliveries (id, job_id, url)
                             SELECT gen_random_uuid(), changed.id, url FROM changed, unnest($1::text[]) AS url
                             WHERE ended_at = now() ON CONFLICT DO NOTHING)
               SELECT * FROM changed"""


@cache
def _claim(*, background: bool, locked: bool) -> str:
    """The statement of :meth:`JobStore.claim`: $1 kinds, $2 worker, then ageing and lock, as far as they matter.

    One for each case, so that each finds its job at the beginning of an index.
    """
    ready = f"state = 'QUEUED' AND kind = ANY($1) AND {_ready('jobs')}" + (
        f" AND lock = ${3 + background}" if locked else ""
    )
    starving, allowed = "", "AND priority = 'INTERACTIVE'"
    if background:
        allowed = "AND (priority = 'BACKGROUND' OR NOT (SELECT yes FROM starving))"
        starving = f"""starving AS MATERIALIZED (
            SELECT NOT EXISTS (SELECT 1 FROM jobs WHERE priority = 'BACKGROUND' AND claimed_at > now() - $3::interval)
               AND coalesce(now() - $3::interval > (
                       SELECT created_at FROM jobs WHERE {ready} AND priority = 'BACKGROUND'
                       ORDER BY turn, created_at LIMIT 1
                   ), false) AS yes
        ), """
    return f"""WITH {starving} next AS (
                   SELECT id FROM jobs WHERE {ready} {allowed}
                   ORDER BY priority DESC, turn, created_at LIMIT 1 FOR UPDATE SKIP LOCKED
               )
               UPDATE jobs SET state = 'RUNNING', attempt = attempt + 1, worker = $2, claimed_at = now(),
                               heartbeat_at = now(), started_at = coalesce(started_at, now()),
                               stage = 'UNSPECIFIED', fraction = 0, eta_seconds = NULL
               FROM next WHERE jobs.id = next.id RETURNING jobs.*"""


class JobStore:
    """The table of jobs; ``webhook_urls`` are told of those that end."""

    def __init__(self, pool: Pool, webhook_urls: Sequence[str] = ()) -> None:
        self._pool = pool
        self._webhook_urls = list(webhook_urls)

    async def create(self, job: NewJob, connection: Connection | None = None) -> tuple[Row, bool]:
        """Insert a job, or find the one that the same request made; say whether it is new.

        With a ``connection``, as part of its transaction.
        """
        database = connection or self._pool
        # Turns are those of start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): an owner's jobs come one
        # turn after the other, and whoever had none waiting begins at the turn that is served now.
        row = await database.fetchrow(
            f"""INSERT INTO jobs (id, owner, request_id, kind, priority, track_id, spec, headers, voice_id, lock, after,
                                 turn)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11,
                       greatest(0, {_first_turn("$5")},
                                (SELECT turn + 1 FROM jobs WHERE state = 'QUEUED' AND owner = $2 AND priority = $5
                                 ORDER BY turn DESC LIMIT 1)))
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
            job.lock,
            list(job.after),
        )
        if row is not None:
            return row, True
        row = await database.fetchrow(_FIND, job.owner, job.request_id)
        assert row is not None
        return row, False

    async def find(self, owner: str, request_id: UUID) -> Row | None:
        """The job that a request made, if any."""
        return await self._pool.fetchrow(_FIND, owner, request_id)

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
        """Jobs of ``owner``, newest first, those created before the position ``before``.

        Jobs of which the same is being done count as RUNNING, as their owners see them.
        """
        created_at, job_id = before or (None, None)
        return await self._pool.fetch(
            """SELECT * FROM jobs
               WHERE owner = $1
                 AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
                 AND (cardinality($4::text[]) = 0 OR CASE WHEN state = 'QUEUED' AND EXISTS (
                          SELECT 1 FROM jobs AS leader WHERE leader.lock = jobs.lock AND leader.state = 'RUNNING'
                      ) THEN 'RUNNING' ELSE state END = ANY($4))
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

    async def mixes(self, job_ids: Sequence[UUID]) -> list[Row]:
        """The stored mixes of jobs that nothing newer has replaced, with ``job_id``."""
        return await self._pool.fetch(
            "SELECT *, rendered_job AS job_id FROM mixes WHERE rendered_job = ANY($1)",
            list(job_ids),
        )

    async def results(self, job_ids: Sequence[UUID]) -> list[Row]:
        """All that jobs have stored: stems, then covers, then mixes."""
        return [*await self.stems(job_ids), *await self.covers(job_ids), *await self.mixes(job_ids)]

    async def waiting(self, owner: str, most: int, connection: Connection | None = None) -> int:
        """How many jobs of ``owner`` wait for a worker; counted up to ``most``."""
        count = await (connection or self._pool).fetchval(
            "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 'QUEUED' AND owner = $1 LIMIT $2) AS counted",
            owner,
            most,
        )
        return int(count)

    async def claim(
        self, kinds: Sequence[str], *, background: bool, worker: str, ageing_seconds: float, lock: str | None = None
    ) -> Row | None:
        """Begin an attempt at the job whose turn it is, if there is any that may begin.

        Interactive jobs come before background ones, but for this: when none of those has begun for
        ``ageing_seconds`` and the first has waited so long, it is next. Jobs of which the same is being done wait.

        Args:
            kinds: What this worker has room for.
            background: Whether it may be a background job.
            worker: Who asks.
            ageing_seconds: How long background work may be kept from everything.
            lock: Only a job of this lock.
        """
        statement = _claim(background=background, locked=lock is not None)
        arguments: list[Any] = [list(kinds), worker]
        if background:
            arguments.append(dt.timedelta(seconds=ageing_seconds))
        if lock is not None:
            arguments.append(lock)
        for _ in range(_RACES):
            try:
                return await self._pool.fetchrow(statement, *arguments)
            except asyncpg.UniqueViolationError:  # somebody began the same at the same moment
                continue
        return None

    async def leader(self, row: Row) -> Row | None:
        """The job that does at this moment what the waiting job ``row`` is to do."""
        if row["state"] != "QUEUED" or row["lock"] is None:
            return None
        return await self._pool.fetchrow("SELECT * FROM jobs WHERE lock = $1 AND state = 'RUNNING'", row["lock"])

    async def followers(self, lock: str) -> list[Row]:
        """Id and priority of jobs that wait for what the holder of ``lock`` does; a hundred, interactive ones first."""
        return await self._pool.fetch(
            """SELECT id, priority FROM jobs WHERE lock = $1 AND state = 'QUEUED'
               ORDER BY priority DESC, created_at LIMIT 100""",
            lock,
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
                f"""UPDATE jobs SET state = CASE WHEN $4 = 'FAILED' AND cancel_requested THEN 'CANCELLED' ELSE $4 END,
                                   error = CASE WHEN cancel_requested THEN NULL ELSE $5::jsonb END,
                                   warnings = $6, timings = $7, ended_at = now(),
                                   attempts = {
                    _ATTEMPT.format(
                        outcome="CASE WHEN $4 = 'FAILED' AND cancel_requested THEN 'CANCELLED' ELSE $4 END",
                        reason="CASE WHEN cancel_requested THEN NULL ELSE $5::jsonb ->> 'reason' END",
                        message="CASE WHEN cancel_requested THEN NULL ELSE $5::jsonb ->> 'message' END",
                    )
                },
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

    async def hand_back(
        self, job_id: UUID, attempt: int, *, retry_in: float | None = None, reason: str = "", message: str = ""
    ) -> Row | None:
        """Return a running job to the queue: this worker stops, or (``retry_in`` seconds) the attempt failed.

        One that was to be cancelled is. Returns the job as it is then; None: the attempt was not live any more.
        """
        remembered = _ATTEMPT.format(
            outcome="""CASE WHEN cancel_requested THEN 'CANCELLED'
                            WHEN $4::interval IS NULL THEN 'HANDED_BACK' ELSE 'FAILED' END""",
            reason="CASE WHEN NOT cancel_requested THEN nullif($5::text, '') END",
            message="CASE WHEN NOT cancel_requested THEN nullif($6::text, '') END",
        )
        return await self._pool.fetchrow(
            _telling(
                f"""UPDATE jobs SET state = CASE WHEN cancel_requested THEN 'CANCELLED' ELSE 'QUEUED' END,
                                    ended_at = CASE WHEN cancel_requested THEN now() END,
                                    heartbeat_at = NULL, stage = 'UNSPECIFIED', fraction = 0, eta_seconds = NULL,
                                    failures = failures + ($4::interval IS NOT NULL)::int,
                                    not_before = now() + coalesce($4, '0 s'), attempts = {remembered},
                                    turn = coalesce({_first_turn("jobs.priority")}, 0)
                    WHERE id = $2 AND attempt = $3 AND state = 'RUNNING'"""
            ),
            self._webhook_urls,
            job_id,
            attempt,
            None if retry_in is None else dt.timedelta(seconds=retry_in),
            reason,
            message,
        )

    async def requeue_lost(self, lease_seconds: float, most_failures: int) -> list[Row]:
        """Take running jobs from workers that give no sign of life; as they are now.

        They wait again, first of their priority, or end: cancelled if that was asked, failed after too many failures.
        """
        return await self._pool.fetch(
            _telling(
                f"""UPDATE jobs SET state = fate.state, failures = failures + 1, heartbeat_at = NULL,
                                    stage = 'UNSPECIFIED', eta_seconds = NULL, not_before = now(),
                                    fraction = CASE WHEN fate.state = 'QUEUED' THEN 0 ELSE fraction END,
                                    ended_at = CASE WHEN fate.state <> 'QUEUED' THEN now() END,
                                    error = CASE WHEN fate.state = 'FAILED' THEN jsonb_build_object(
                                        'reason', 'ATTEMPTS_EXHAUSTED', 'retryable', true,
                                        'message', format('%s attempts were cut short', failures + 1)) END,
                                    turn = coalesce({_first_turn("jobs.priority")}, 0),
                                    attempts = {
                    _ATTEMPT.format(
                        outcome="'LOST'", reason="'WORKER_LOST'", message="'the worker gave no sign of life'"
                    )
                }
                    FROM (SELECT id AS lost_id, CASE WHEN cancel_requested THEN 'CANCELLED'
                                                     WHEN failures + 1 >= $3 THEN 'FAILED' ELSE 'QUEUED' END AS state
                          FROM jobs WHERE state = 'RUNNING' AND heartbeat_at < now() - $2::interval
                          ORDER BY heartbeat_at LIMIT 1000 FOR UPDATE SKIP LOCKED) AS fate
                    WHERE id = fate.lost_id""",
                "jobs.*",
            ),
            self._webhook_urls,
            dt.timedelta(seconds=lease_seconds),
            most_failures,
        )

    async def cancel(self, job_id: UUID, owner: str) -> Row | None:
        """Cancel a waiting job, or ask the worker of a running one to; None if there is none."""
        rows = await self.cancel_all([job_id], owner, self._pool)
        return rows[0] if rows else None

    async def cancel_all(self, job_ids: Sequence[UUID], owner: str, database: Pool | Connection) -> list[Row]:
        """Do as :meth:`cancel` does, for those of the jobs that there are; as part of a connection's transaction."""
        return await database.fetch(
            _telling(
                """UPDATE jobs SET
                       cancel_requested = cancel_requested OR state IN ('QUEUED', 'RUNNING'),
                       ended_at = CASE WHEN state = 'QUEUED' THEN now() ELSE ended_at END,
                       state = CASE WHEN state = 'QUEUED' THEN 'CANCELLED' ELSE state END
                   WHERE id = ANY($2) AND owner = $3"""
            ),
            self._webhook_urls,
            list(job_ids),
            owner,
        )

    async def unfinished_of_track(self, track_id: UUID) -> list[UUID]:
        """Jobs of a track that have not ended."""
        rows = await self._pool.fetch(
            "SELECT id FROM jobs WHERE track_id = $1 AND state IN ('QUEUED', 'RUNNING')", track_id
        )
        return [row["id"] for row in rows]

    async def due(self, most: int) -> int:
        """How many jobs wait for nothing but a worker, counted up to ``most``."""
        count = await self._pool.fetchval(
            f"""SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 'QUEUED' AND {_ready("jobs")}
                                      ORDER BY priority DESC, turn, created_at LIMIT $1) AS counted""",
            most,
        )
        return int(count)
