"""How jobs of every kind are created."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import grpc
from contrafact.v1 import audio_pb2, job_pb2
from google.protobuf import json_format
from google.protobuf.message import Message

from servers.inference.models import SEPARATION_MODELS
from servers.orchestrator.jobs.load import Load
from servers.orchestrator.jobs.queue import JobQueue, QueueUnavailable
from servers.orchestrator.jobs.store import JobStore, NewJob
from servers.orchestrator.jobs.views import JobViews
from servers.platform import telemetry
from servers.platform.errors import ApiError, invalid, request_id_reused
from servers.platform.identity import principal
from servers.platform.settings import Settings
from servers.storage.database import Connection, Row


def complete(spec: job_pb2.SeparationSpec | job_pb2.CoverSpec, settings: Settings) -> None:
    """Write down the default model and format; INVALID_ARGUMENT if there is no such model."""
    spec.model = spec.model or settings.model
    spec.format = spec.format or audio_pb2.AUDIO_FORMAT_FLAC
    if spec.model not in SEPARATION_MODELS:
        raise invalid("UNKNOWN_MODEL", f"the models are {', '.join(SEPARATION_MODELS)}", "spec.model")


@dataclass(frozen=True, slots=True)
class Subject:
    """What a job is about; it begins when those that it comes ``after`` have ended."""

    track_id: UUID | None
    voice_id: UUID | None
    lock: str
    after: Sequence[UUID] = ()


def _wanted(kind: str, spec: Message, priority: job_pb2.Priority.ValueType) -> tuple[str, str, dict[str, Any]]:
    """Kind, priority and specification as they are stored."""
    level = job_pb2.Priority.Name(priority or job_pb2.PRIORITY_INTERACTIVE).removeprefix("PRIORITY_")
    return kind, level, json_format.MessageToDict(spec, preserving_proto_field_name=True)


def _check_same(row: Row, wanted: tuple[str, str, dict[str, Any]]) -> None:
    """ALREADY_EXISTS if the job of a request is not what it wants now."""
    if (row["kind"], row["priority"], row["spec"]) != wanted:
        raise request_id_reused("this request_id made a job with another specification")


def _new(request_id: UUID, wanted: tuple[str, str, dict[str, Any]], about: Subject) -> NewJob:
    return NewJob(
        *(principal().id, request_id, *wanted, about.track_id, telemetry.outgoing_headers()),
        voice_id=about.voice_id,
        lock=about.lock,
        after=about.after,
    )


class JobCreator:
    """Creates jobs and dispatches them."""

    def __init__(self, store: JobStore, views: JobViews, queue: JobQueue, load: Load, settings: Settings) -> None:
        self._store = store
        self._views = views
        self._queue = queue
        self._load = load
        self._settings = settings

    async def create(
        self,
        kind: str,
        spec: Message,
        request_id: str,
        priority: job_pb2.Priority.ValueType,
        subject: Callable[[], Awaitable[Subject]],
    ) -> job_pb2.Job:
        """The job of this request, new unless the request was made before.

        Args:
            kind: A key of the workers' pipelines.
            spec: What to do, with every default written down.
            request_id: A UUID; the same one gives the same job.
            priority: UNSPECIFIED: INTERACTIVE.
            subject: Finds what the job is about, or raises; not asked when the job exists, because that may be gone.

        Raises:
            ApiError: ALREADY_EXISTS when the request made another job before, RESOURCE_EXHAUSTED when too many jobs
                wait, and what ``subject`` raises.
        """
        wanted = kind, level, _ = _wanted(kind, spec, priority)
        request = UUID(request_id)
        row = await self._store.find(principal().id, request)
        if row is None:
            about = await subject()
            await self._admit(principal().id, level)
            try:
                row, is_new = await self._store.create(_new(request, wanted, about))
            except asyncpg.ForeignKeyViolationError:  # something was deleted since
                await subject()
                raise
            if is_new:
                await self.dispatch(row)
        _check_same(row, wanted)
        return await self._views.job(row)

    async def create_within(
        self,
        connection: Connection,
        kind: str,
        spec: Message,
        request_id: UUID,
        priority: job_pb2.Priority.ValueType,
        about: Subject,
    ) -> Row:
        """Create a job as part of a transaction, after which it is to be dispatched; or find that of the request.

        Raises:
            ApiError: as ``create``; the transaction must be given up.
        """
        wanted = kind, level, _ = _wanted(kind, spec, priority)
        await self._admit(principal().id, level, connection)  # another one may not be free while we hold this
        row, _ = await self._store.create(_new(request_id, wanted, about), connection)
        _check_same(row, wanted)  # now: what else the transaction has changed must not stay
        return row

    async def is_crowded(self) -> bool:
        """Whether half as many jobs of the caller wait as may."""
        half = self._settings.max_queued_jobs_per_owner // 2
        return await self._store.waiting(principal().id, half) >= half

    async def _admit(self, owner: str, priority: str, connection: Connection | None = None) -> None:
        """RESOURCE_EXHAUSTED if too many jobs wait already: a moment ago in all, or of this owner's now."""
        if self._load.queued(priority) >= self._settings.max_queued_jobs:
            raise self._full("QUEUE_FULL", f"too many {priority.lower()} jobs are waiting")
        most = self._settings.max_queued_jobs_per_owner
        if await self._store.waiting(owner, most, connection) >= most:
            raise self._full("TOO_MANY_JOBS", f"{most} of your jobs are waiting")

    def _full(self, reason: str, detail: str) -> ApiError:
        return ApiError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            reason,
            f"{detail}; try again later",
            retry_after=math.ceil(self._load.retry_after()),
        )

    async def dispatch(self, job: Row) -> None:
        """Wake a worker for a new job."""
        try:
            await self._queue.send(f"{job['id']}-{job['attempt']}")
        except QueueUnavailable as error:
            # The job is accepted all the same: the dispatcher wakes a worker for it.
            telemetry.log().warning("nobody woken yet", job_id=str(job["id"]), error=str(error))
