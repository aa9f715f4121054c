"""How jobs of every kind are created."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID

import asyncpg
import grpc
from contrafact.v1 import audio_pb2, job_pb2
from google.protobuf import json_format
from google.protobuf.message import Message

from servers.inference.models import SEPARATION_MODELS
from servers.orchestrator.api.jobs import describe
from servers.orchestrator.jobs.queue import JobQueue, QueueUnavailable
from servers.orchestrator.jobs.store import JobStore, NewJob
from servers.platform import telemetry
from servers.platform.errors import ApiError, invalid
from servers.platform.identity import principal
from servers.platform.settings import Settings
from servers.storage.database import Row


def complete(spec: job_pb2.SeparationSpec | job_pb2.CoverSpec, settings: Settings) -> None:
    """Write down the default model and format; INVALID_ARGUMENT if there is no such model."""
    spec.model = spec.model or settings.model
    spec.format = spec.format or audio_pb2.AUDIO_FORMAT_FLAC
    if spec.model not in SEPARATION_MODELS:
        raise invalid("UNKNOWN_MODEL", f"the models are {', '.join(SEPARATION_MODELS)}", "spec.model")


class JobCreator:
    """Creates jobs and dispatches them."""

    def __init__(self, store: JobStore, queue: JobQueue) -> None:
        self._store = store
        self._queue = queue

    async def create(
        self,
        kind: str,
        spec: Message,
        request_id: str,
        priority: job_pb2.Priority.ValueType,
        resources: Callable[[], Awaitable[tuple[UUID, UUID | None]]],
    ) -> job_pb2.Job:
        """The job of this request, new unless the request was made before.

        Args:
            kind: A key of the workers' pipelines.
            spec: What to do, with every default written down.
            request_id: A UUID; the same one gives the same job.
            priority: UNSPECIFIED: INTERACTIVE.
            resources: Finds the ids of track and voice, or raises; not asked when the job exists, because what it
                was made of may be gone.

        Raises:
            ApiError: ALREADY_EXISTS when the request made another job before, and what ``resources`` raises.
        """
        level = job_pb2.Priority.Name(priority or job_pb2.PRIORITY_INTERACTIVE).removeprefix("PRIORITY_")
        wanted = (kind, level, json_format.MessageToDict(spec, preserving_proto_field_name=True))
        request = UUID(request_id)
        row = await self._store.find(principal().id, request)
        if row is None:
            track_id, voice_id = await resources()
            new = NewJob(principal().id, request, *wanted, track_id, telemetry.outgoing_headers(), voice_id)
            try:
                row, is_new = await self._store.create(new)
            except asyncpg.ForeignKeyViolationError:  # something was deleted since
                await resources()
                raise
            if is_new:
                await self._dispatch(row)
        if (row["kind"], row["priority"], row["spec"]) != wanted:
            raise ApiError(
                grpc.StatusCode.ALREADY_EXISTS,
                "REQUEST_ID_REUSED",
                "this request_id made a job with another specification",
                fields=[("request_id", "already used")],
            )
        return await describe(self._store, row)

    async def _dispatch(self, job: Row) -> None:
        try:
            await self._queue.enqueue(job["id"], job["priority"], job["attempt"])
        except QueueUnavailable as error:
            # The job is accepted all the same: the reconciler dispatches it when Redis is back.
            telemetry.log().warning("job not dispatched yet", job_id=str(job["id"]), error=str(error))
