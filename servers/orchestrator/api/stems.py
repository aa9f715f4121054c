"""StemService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

import grpc
from contrafact.v1 import audio_pb2, job_pb2, stem_pb2, stem_pb2_grpc
from google.protobuf import json_format

from servers.inference.models import SEPARATION_MODELS
from servers.orchestrator.api.jobs import SILENCE_SECONDS, describe, find_job
from servers.orchestrator.api.resources import (
    chunk,
    find_track,
    page_limit,
    read_chunks,
    read_token,
    write_token,
)
from servers.orchestrator.jobs import messages
from servers.orchestrator.jobs.events import BEGINNING, EventHub
from servers.orchestrator.jobs.queue import JobQueue, QueueUnavailable
from servers.orchestrator.jobs.store import FINAL_STATES, JobStore, NewJob
from servers.orchestrator.pipelines.separate import DEFAULT_STEMS
from servers.platform import telemetry
from servers.platform.errors import ApiError, invalid, not_found
from servers.platform.identity import principal
from servers.platform.interceptors import Context
from servers.platform.settings import Settings
from servers.storage import keys
from servers.storage.database import Pool, Row
from servers.storage.objects import ObjectMissing, ObjectStore


async def find_stem(pool: Pool, name: str) -> tuple[str, Row]:
    """The name of the track and the row of the caller's stem of that resource name, or NOT_FOUND."""
    track_name, _, stem_id = name.partition("/stems/")
    track = await find_track(pool, track_name)
    parts = stem_id.split(".")
    if len(parts) == 3:
        for row in await pool.fetch(
            "SELECT * FROM stems WHERE sha256 = $1 AND model = $2 AND stem = $3",
            track["sha256"],
            parts[0],
            parts[1],
        ):
            if messages.stem_id(row) == stem_id:
                return track_name, row
    raise not_found("stem", name)


class StemService(stem_pb2_grpc.StemServiceServicer):
    """Separations and their stems."""

    def __init__(
        self,
        pool: Pool,
        objects: ObjectStore,
        store: JobStore,
        queue: JobQueue,
        hub: EventHub,
        settings: Settings,
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._store = store
        self._queue = queue
        self._hub = hub
        self._settings = settings

    async def CreateSeparation(
        self, request: stem_pb2.CreateSeparationRequest, context: Context
    ) -> stem_pb2.CreateSeparationResponse:
        spec = job_pb2.SeparationSpec()
        spec.CopyFrom(request.spec)
        spec.model = spec.model or self._settings.model
        spec.format = spec.format or audio_pb2.AUDIO_FORMAT_FLAC
        if not spec.stems:
            spec.stems.extend(messages.STEMS[stem] for stem in DEFAULT_STEMS)
        if spec.model not in SEPARATION_MODELS:
            raise invalid("UNKNOWN_MODEL", f"the models are {', '.join(SEPARATION_MODELS)}", "spec.model")
        priority = job_pb2.Priority.Name(request.priority or job_pb2.PRIORITY_INTERACTIVE).removeprefix("PRIORITY_")
        wanted = ("SEPARATE", priority, json_format.MessageToDict(spec, preserving_proto_field_name=True))
        request_id = UUID(request.request_id)
        row = await self._store.find(principal().id, request_id)
        if row is None:
            track = await find_track(self._pool, spec.track)
            row, is_new = await self._store.create(
                NewJob(principal().id, request_id, *wanted, track["id"], telemetry.outgoing_headers())
            )
            if is_new:
                await self._dispatch(row)
        if (row["kind"], row["priority"], row["spec"]) != wanted:
            raise ApiError(
                grpc.StatusCode.ALREADY_EXISTS,
                "REQUEST_ID_REUSED",
                "this request_id made a job with another specification",
                fields=[("request_id", "already used")],
            )
        return stem_pb2.CreateSeparationResponse(job=await describe(self._store, row))

    async def _dispatch(self, job: Row) -> None:
        try:
            await self._queue.enqueue(job["id"], job["priority"], job["attempt"])
        except QueueUnavailable as error:
            # The job is accepted all the same: the reconciler dispatches it when Redis is back.
            telemetry.log().warning("job not dispatched yet", job_id=str(job["id"]), error=str(error))

    async def GetStem(self, request: stem_pb2.GetStemRequest, context: Context) -> stem_pb2.GetStemResponse:
        track_name, row = await find_stem(self._pool, request.name)
        return stem_pb2.GetStemResponse(stem=messages.artifact(row, track_name))

    async def ListStems(self, request: stem_pb2.ListStemsRequest, context: Context) -> stem_pb2.ListStemsResponse:
        track = await find_track(self._pool, request.parent)
        limit = page_limit(request.page_size)
        after = read_token(request.page_token, 3) or ["", "", ""]
        rows = await self._pool.fetch(
            """SELECT * FROM stems WHERE sha256 = $1 AND (model, stem, format) > ($2, $3, $4)
               ORDER BY model, stem, format LIMIT $5""",
            track["sha256"],
            *after,
            limit + 1,
        )
        token = ""
        if len(rows) > limit:
            rows = rows[:limit]
            token = write_token(*(rows[-1][column] for column in ("model", "stem", "format")))
        stems = [messages.artifact(row, request.parent) for row in rows]
        return stem_pb2.ListStemsResponse(stems=stems, next_page_token=token)

    async def DownloadStem(
        self, request: stem_pb2.DownloadStemRequest, context: Context
    ) -> AsyncIterator[stem_pb2.DownloadStemResponse]:
        _, row = await find_stem(self._pool, request.name)
        async for part in read_chunks(
            self._objects, row["object_key"], row["size_bytes"], request.offset, request.name
        ):
            yield stem_pb2.DownloadStemResponse(chunk=part)

    async def StreamStems(
        self, request: stem_pb2.StreamStemsRequest, context: Context
    ) -> AsyncIterator[stem_pb2.StreamStemsResponse]:
        job = await find_job(self._store, request.job)
        if job["kind"] != "SEPARATE":
            raise invalid("NOT_A_SEPARATION", "only separations have stems", "job")
        spec = json_format.ParseDict(job["spec"], job_pb2.SeparationSpec())
        for index, position in enumerate(request.positions):
            if position.stem not in spec.stems:
                raise invalid("STEM_NOT_IN_JOB", "the job does not make this stem", f"positions[{index}].stem")
        positions = {position.stem: position.offset for position in request.positions}
        open_stems = positions or dict.fromkeys(spec.stems, 0)
        async with self._hub.listen(job["id"], BEGINNING) as listener:
            while True:
                # In this order: a stem that is stored between the two look-ups is found by the next round.
                job = await find_job(self._store, request.job)
                finished = {messages.STEMS[row["stem"]]: row for row in await self._store.stems([job["id"]])}
                said_anything = False
                for stem in list(open_stems):
                    if stem in finished:
                        source = self._finished(request.job, spec.track, finished[stem], open_stems.pop(stem))
                    else:
                        source = self._growing(job, stem, open_stems)
                    async for response in source:
                        said_anything = True
                        yield response
                if not open_stems:
                    return
                if job["state"] in FINAL_STATES:
                    raise _ended_early(job)
                if not said_anything:
                    await listener.wait(SILENCE_SECONDS)

    async def _finished(
        self, job_name: str, track_name: str, row: Row, offset: int
    ) -> AsyncIterator[stem_pb2.StreamStemsResponse]:
        """The rest of a stored stem, and its end."""
        stem = messages.STEMS[row["stem"]]
        async for part in read_chunks(self._objects, row["object_key"], row["size_bytes"], offset, job_name):
            yield stem_pb2.StreamStemsResponse(stem=stem, chunk=part)
        end = messages.artifact(row, track_name)
        yield stem_pb2.StreamStemsResponse(stem=stem, end=end, frames_ready=row["frames"])

    async def _growing(
        self, job: Row, stem: messages.Stem, positions: dict[messages.Stem, int]
    ) -> AsyncIterator[stem_pb2.StreamStemsResponse]:
        """What there is of a stem that is being made, a few pieces at a time so that stems take turns."""
        name = messages.STEM_NAMES[stem]
        pieces = await self._pool.fetch(
            """SELECT * FROM live_pieces WHERE job_id = $1 AND attempt = $2 AND stem = $3 AND start + size_bytes > $4
               ORDER BY start LIMIT 4""",
            job["id"],
            job["attempt"],
            name,
            positions[stem],
        )
        for piece in pieces:
            key = keys.live_piece(job["id"], job["attempt"], name, piece["start"])
            try:
                async for data in self._objects.read(key, positions[stem] - piece["start"]):
                    part = chunk(positions[stem], data)
                    positions[stem] += len(data)
                    ready = piece["frames_ready"] if positions[stem] == piece["start"] + piece["size_bytes"] else 0
                    yield stem_pb2.StreamStemsResponse(stem=stem, chunk=part, frames_ready=ready)
            except ObjectMissing:
                return  # the stem was finished or the attempt given up meanwhile: the next round tells


def _ended_early(job: Row) -> ApiError:
    reason = (job["error"] or {}).get("reason", job["state"])
    return ApiError(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"JOB_{job['state']}",
        f"the job ended without these stems: {reason}",
        metadata={"job_reason": reason},
    )
