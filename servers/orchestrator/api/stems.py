"""StemService."""

from __future__ import annotations

from collections.abc import AsyncIterator

from contrafact.v1 import job_pb2, stem_pb2, stem_pb2_grpc
from google.protobuf import json_format

from servers.orchestrator.api.creation import JobCreator, Subject, complete
from servers.orchestrator.api.jobs import find_job
from servers.orchestrator.api.live import SILENCE_SECONDS, ended_without, maker, read_growing
from servers.orchestrator.api.marks import MarkedStems
from servers.orchestrator.api.resources import (
    find_track,
    page_limit,
    read_chunks,
    read_token,
    write_token,
)
from servers.orchestrator.jobs import locks, messages
from servers.orchestrator.jobs.hub import EventHub
from servers.orchestrator.jobs.retention import stem_used
from servers.orchestrator.jobs.store import FINAL_STATES, JobStore
from servers.orchestrator.pipelines.separate import DEFAULT_STEMS
from servers.platform.errors import invalid
from servers.platform.interceptors import Context
from servers.platform.settings import Settings
from servers.storage.database import Pool, Row
from servers.storage.objects import ObjectStore


class StemService(stem_pb2_grpc.StemServiceServicer):
    """Separations and their stems."""

    def __init__(
        self,
        pool: Pool,
        objects: ObjectStore,
        store: JobStore,
        creator: JobCreator,
        hub: EventHub,
        stems: MarkedStems,
        settings: Settings,
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._store = store
        self._creator = creator
        self._hub = hub
        self._stems = stems
        self._settings = settings

    async def CreateSeparation(
        self, request: stem_pb2.CreateSeparationRequest, context: Context
    ) -> stem_pb2.CreateSeparationResponse:
        spec = job_pb2.SeparationSpec()
        spec.CopyFrom(request.spec)
        complete(spec, self._settings)
        if not spec.stems:
            spec.stems.extend(messages.STEMS[stem] for stem in DEFAULT_STEMS)

        async def subject() -> Subject:
            track = await find_track(self._pool, spec.track)
            return Subject(track["id"], None, locks.of_separation(track["sha256"], spec))

        job = await self._creator.create("SEPARATE", spec, request.request_id, request.priority, subject)
        return stem_pb2.CreateSeparationResponse(job=job)

    async def GetStem(self, request: stem_pb2.GetStemRequest, context: Context) -> stem_pb2.GetStemResponse:
        track_name, row = await self._stems.find(request.name)
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
        _, row = await self._stems.find(request.name)
        await stem_used(self._pool, row)
        async for part in read_chunks(
            self._objects, row["object_key"], row["size_bytes"], request.offset, "stem", request.name
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
        async with self._hub.listen(job["id"]) as listener:
            while True:
                # In this order: a stem that is stored between the two look-ups is found by the next round.
                job = await find_job(self._store, request.job)
                source_job = await maker(self._store, job)
                stored = await self._store.stems([job["id"], source_job["id"]])
                finished = {messages.STEMS[row["stem"]]: row for row in stored}
                said_anything = False
                for stem in list(open_stems):
                    if stem in finished:
                        source = self._finished(spec.track, finished[stem], open_stems.pop(stem))
                    else:
                        source = self._growing(source_job, stem, open_stems)
                    async for response in source:
                        said_anything = True
                        yield response
                if not open_stems:
                    return
                if job["state"] in FINAL_STATES:
                    raise ended_without(job, "these stems")
                if not said_anything:
                    await listener.wait(SILENCE_SECONDS)

    async def _finished(self, track_name: str, row: Row, offset: int) -> AsyncIterator[stem_pb2.StreamStemsResponse]:
        """The rest of a stored stem, and its end."""
        stem = messages.STEMS[row["stem"]]
        await stem_used(self._pool, row)
        end = messages.artifact(row, track_name)
        async for part in read_chunks(self._objects, row["object_key"], row["size_bytes"], offset, "stem", end.name):
            yield stem_pb2.StreamStemsResponse(stem=stem, chunk=part)
        yield stem_pb2.StreamStemsResponse(stem=stem, end=end, frames_ready=row["frames"])

    async def _growing(
        self, job: Row, stem: messages.Stem, positions: dict[messages.Stem, int]
    ) -> AsyncIterator[stem_pb2.StreamStemsResponse]:
        """Some of what there is of a stem that is being made."""
        name = messages.STEM_NAMES[stem]
        async for part, ready in read_growing(self._pool, self._objects, job, name, positions[stem]):
            positions[stem] += len(part.data)
            yield stem_pb2.StreamStemsResponse(stem=stem, chunk=part, frames_ready=ready)
