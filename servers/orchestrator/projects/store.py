"""The table of projects, and how far what they need is prepared.

A project can be mixed once its four stems are stored in a lossless format, and its track is analysed. Of stems that had
to be clipped in FLAC those in WAV are better, but they will do: hardly any song would be ready otherwise.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID

from contrafact.v1 import job_pb2, project_pb2
from google.protobuf import json_format

from servers.inference.models import SEPARATION_MODELS, versioned
from servers.orchestrator.jobs import messages
from servers.orchestrator.jobs.retention import stem_used
from servers.orchestrator.pipelines.separate import DEFAULT_STEMS
from servers.storage.database import Connection, Pool, Row

State: TypeAlias = "project_pb2.ProjectState.ValueType"

_SEPARATION_SHARE = 0.9  # of the preparation; the rest is the analysis
_VERSIONED = {model: versioned(model) for model in SEPARATION_MODELS}
_LOSSLESS = "format IN ('wav', 'flac')"


def _job(kind: str) -> str:
    """Columns of the job of that kind; waiting for another that does the same counts as running."""
    return f"""CASE WHEN {kind}_leader.id IS NULL THEN {kind}.state ELSE 'RUNNING' END AS {kind}_state,
               coalesce({kind}_leader.fraction, {kind}.fraction) AS {kind}_fraction,
               {kind}.error AS {kind}_error,
               coalesce({kind}.cancel_requested, false) AS {kind}_stops"""


def _joined(kind: str) -> str:
    return f"""LEFT JOIN jobs AS {kind} ON {kind}.id = {kind}_job
               LEFT JOIN jobs AS {kind}_leader ON {kind}_leader.lock = {kind}.lock
                         AND {kind}_leader.state = 'RUNNING' AND {kind}.state = 'QUEUED'"""


# $1: the models' names with their versions; $2: those of stems. An old analysis is as good as any until who reads it
# has it made anew.
_PROJECTS = f"""
    SELECT p.*, t.sha256, t.display_name AS track_name, r.sample_rate, r.channels, r.frames,
           (SELECT count(DISTINCT stem) FROM stems WHERE stems.sha256 = t.sha256 AND {_LOSSLESS}
              AND stems.model = $1::jsonb ->> p.model AND stem = ANY($2)) = cardinality($2) AS separation_made,
           EXISTS (SELECT 1 FROM analyses WHERE analyses.sha256 = t.sha256) AS analysis_made,
           {_job("separation")}, {_job("analysis")}
    FROM projects p JOIN tracks t ON t.id = p.track_id JOIN recordings r ON r.sha256 = t.sha256
         {_joined("separation")} {_joined("analysis")}"""


@dataclass(frozen=True, slots=True)
class Preparation:
    """One of the two things a project needs: whether it is ``made``, and the job that makes it."""

    made: bool
    job_id: UUID | None
    state: str | None
    progress: float
    error: dict[str, Any] | None
    stops: bool

    @classmethod
    def of(cls, row: Row, kind: str) -> Preparation:
        """ "separation" or "analysis" of a row of ``ProjectStore``."""
        columns = (row[f"{kind}_{column}"] for column in ("made", "job", "state", "fraction", "error", "stops"))
        return cls(*columns)

    @property
    def going_on(self) -> bool:
        """Whether its job has not ended."""
        return self.state in ("QUEUED", "RUNNING")

    @property
    def wanting(self) -> bool:
        """Whether nobody makes it, nor will."""
        return not self.made and (self.stops or not self.going_on)

    @property
    def fraction(self) -> float:
        """How much of it is done, 0 to 1."""
        return 1.0 if self.made else self.progress or 0.0

    def trouble(self) -> job_pb2.JobError:
        """Why nobody makes it."""
        if self.error:
            return json_format.ParseDict(self.error, job_pb2.JobError())
        if self.stops or self.state == "CANCELLED":
            return job_pb2.JobError(reason="CANCELLED", message="it was cancelled", retryable=True)
        return job_pb2.JobError(reason="OBJECT_MISSING", message="what was prepared is gone", retryable=True)


def preparations(row: Row) -> tuple[Preparation, Preparation]:
    """Separation and analysis of a project."""
    return Preparation.of(row, "separation"), Preparation.of(row, "analysis")


def unfinished(row: Row) -> list[UUID]:
    """Jobs that a project waits for."""
    return [part.job_id for part in preparations(row) if not part.made and part.going_on and part.job_id is not None]


def state(row: Row) -> State:
    """Where a project stands."""
    parts = [part for part in preparations(row) if not part.made]
    if not parts:
        return project_pb2.PROJECT_STATE_READY
    if any(part.wanting for part in parts):
        return project_pb2.PROJECT_STATE_ERROR
    running = any(part.state == "RUNNING" for part in parts)
    return project_pb2.PROJECT_STATE_SEPARATING if running else project_pb2.PROJECT_STATE_CREATED


def project(row: Row) -> project_pb2.Project:
    """A row of ``ProjectStore`` as a message."""
    separation, analysis = preparations(row)
    wanting = [part for part in (separation, analysis) if part.wanting]
    share = _SEPARATION_SHARE
    return project_pb2.Project(
        name=f"projects/{row['id']}",
        display_name=row["display_name"],
        track=f"tracks/{row['track_id']}",
        model=row["model"],
        state=state(row),
        error=wanting[0].trouble() if wanting else None,
        fraction=share * separation.fraction + (1 - share) * analysis.fraction,
        jobs=[f"jobs/{part.job_id}" for part in (separation, analysis) if part.job_id is not None],
        create_time=messages.timestamp(row["created_at"]),
    )


class ProjectStore:
    """Reads projects, with the columns that the functions of this module need."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._arguments = [_VERSIONED, list(DEFAULT_STEMS)]

    async def find(self, project_id: UUID, owner: str, database: Pool | Connection | None = None) -> Row | None:
        """A project, if there is that one and it belongs to ``owner``."""
        where = f"{_PROJECTS} WHERE p.id = $3 AND p.owner = $4"
        return await (database or self._pool).fetchrow(where, *self._arguments, project_id, owner)

    async def of_request(self, request_id: UUID, owner: str) -> Row | None:
        """The project that a request of ``owner`` made, if any."""
        where = f"{_PROJECTS} WHERE p.request_id = $3 AND p.owner = $4"
        return await self._pool.fetchrow(where, *self._arguments, request_id, owner)

    async def page(
        self, owner: str, limit: int, before: tuple[dt.datetime, UUID] | None, track_id: UUID | None
    ) -> list[Row]:
        """Projects of ``owner``, newest first, those created before the position ``before``."""
        created_at, project_id = before or (None, None)
        return await self._pool.fetch(
            f"""{_PROJECTS} WHERE p.owner = $3 AND ($4::timestamptz IS NULL OR (p.created_at, p.id) < ($4, $5::uuid))
                AND ($6::uuid IS NULL OR p.track_id = $6)
                ORDER BY p.created_at DESC, p.id DESC LIMIT $7""",
            *self._arguments,
            owner,
            created_at,
            project_id,
            track_id,
            limit,
        )


async def stored_stems(pool: Pool, sha256: str, model: str) -> dict[str, Row]:
    """The best lossless file of each stem of a recording that is stored, by name; ``model`` without its version."""
    rows = await pool.fetch(
        f"""SELECT DISTINCT ON (stem) * FROM stems WHERE sha256 = $1 AND model = $2 AND {_LOSSLESS}
            ORDER BY stem, format = 'flac' AND clipped > 0, format""",
        sha256,
        _VERSIONED.get(model, ""),
    )
    for row in rows:
        await stem_used(pool, row)
    return {row["stem"]: row for row in rows}
