"""CoverService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from contrafact.v1 import audio_pb2, cover_pb2, cover_pb2_grpc, job_pb2
from google.protobuf import json_format

from servers.orchestrator.api.creation import JobCreator, Subject, complete
from servers.orchestrator.api.live import Live
from servers.orchestrator.api.resources import (
    find_track,
    page_limit,
    read_chunks,
    read_time_token,
    resource_id,
    time_page,
)
from servers.orchestrator.api.voices import check_conversion, find_voice
from servers.orchestrator.jobs import locks, messages
from servers.orchestrator.jobs.hub import EventHub
from servers.orchestrator.jobs.store import JobStore
from servers.orchestrator.pipelines.covers import cover_id
from servers.orchestrator.voices.parameters import completed, completed_mix
from servers.orchestrator.voices.pool import PoolReports
from servers.orchestrator.voices.store import VoiceStore
from servers.platform.errors import ApiError, not_found, precondition
from servers.platform.identity import principal
from servers.platform.interceptors import Context
from servers.platform.settings import Settings
from servers.platform.tasks import to_the_end
from servers.storage import keys
from servers.storage.database import Pool, Row, exclusive
from servers.storage.objects import ObjectStore

LOWEST_RATE = 8000  # that the mixer measures


async def find_cover(pool: Pool, name: str) -> Row:
    """The caller's cover of that resource name, or NOT_FOUND."""
    row = await pool.fetchrow(
        "SELECT * FROM covers WHERE id = $1 AND owner = $2", resource_id("cover", name), principal().id
    )
    if row is None:
        raise not_found("cover", name)
    return row


class CoverService(cover_pb2_grpc.CoverServiceServicer):
    """Covers and the jobs that make them."""

    def __init__(
        self,
        pool: Pool,
        objects: ObjectStore,
        store: JobStore,
        creator: JobCreator,
        hub: EventHub,
        voices: VoiceStore,
        reports: PoolReports,
        settings: Settings,
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._store = store
        self._creator = creator
        self._live = Live(pool, objects, store, hub)
        self._voices = voices
        self._reports = reports
        self._settings = settings

    async def CreateCover(
        self, request: cover_pb2.CreateCoverRequest, context: Context
    ) -> cover_pb2.CreateCoverResponse:
        spec = job_pb2.CoverSpec()
        spec.CopyFrom(request.spec)
        complete(spec, self._settings)
        spec.conversion.CopyFrom(completed(spec.conversion))
        spec.mix.CopyFrom(completed_mix(spec.mix))

        async def subject() -> Subject:
            track, voice = await find_track(self._pool, spec.track), await find_voice(self._voices, spec.voice)
            if track["sample_rate"] < LOWEST_RATE:
                message = f"a track of {track['sample_rate']} Hz cannot be covered; {LOWEST_RATE} Hz are needed"
                raise precondition("TRACK_RATE_TOO_LOW", message)
            await check_conversion(spec.conversion, voice, self._reports, "spec.conversion")
            if spec.conversion.auto_octave and voice["pitch_median"] is None:
                message = "the voice's pitch is not known; import it with a sample, or set its pitch_range"
                raise precondition("VOICE_PITCH_UNKNOWN", message)
            identity = cover_id(principal().id, track["sha256"], voice, spec)
            return Subject(track["id"], voice["id"], locks.of_cover(identity))

        job = await self._creator.create("COVER", spec, request.request_id, request.priority, subject)
        return cover_pb2.CreateCoverResponse(job=job)

    async def GetCover(self, request: cover_pb2.GetCoverRequest, context: Context) -> cover_pb2.GetCoverResponse:
        return cover_pb2.GetCoverResponse(cover=_cover(await find_cover(self._pool, request.name)))

    async def ListCovers(self, request: cover_pb2.ListCoversRequest, context: Context) -> cover_pb2.ListCoversResponse:
        limit = page_limit(request.page_size)
        created_at, cover_id = read_time_token(request.page_token) or (None, None)
        rows = await self._pool.fetch(
            """SELECT * FROM covers
               WHERE owner = $1 AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
                 AND ($4::uuid IS NULL OR track_id = $4) AND ($5::uuid IS NULL OR voice_id = $5)
               ORDER BY created_at DESC, id DESC LIMIT $6""",
            principal().id,
            created_at,
            cover_id,
            resource_id("track", request.track) if request.track else None,
            resource_id("voice", request.voice) if request.voice else None,
            limit + 1,
        )
        rows, token = time_page(rows, limit)
        return cover_pb2.ListCoversResponse(covers=map(_cover, rows), next_page_token=token)

    async def DeleteCover(
        self, request: cover_pb2.DeleteCoverRequest, context: Context
    ) -> cover_pb2.DeleteCoverResponse:
        row = await find_cover(self._pool, request.name)
        await to_the_end(self._delete(row))
        return cover_pb2.DeleteCoverResponse()

    async def _delete(self, row: Row) -> None:
        # Against who publishes the same cover at this moment. Bytes without a row are found by the reconciler.
        async with exclusive(self._pool, str(row["id"])) as connection:
            await connection.execute("DELETE FROM covers WHERE id = $1", row["id"])
            await self._objects.delete_prefix(keys.covers_prefix(row["id"]))

    async def DownloadCover(
        self, request: cover_pb2.DownloadCoverRequest, context: Context
    ) -> AsyncIterator[cover_pb2.DownloadCoverResponse]:
        row = await find_cover(self._pool, request.name)
        async for part in self._stored(row, request.offset):
            yield cover_pb2.DownloadCoverResponse(chunk=part)

    async def StreamCover(
        self, request: cover_pb2.StreamCoverRequest, context: Context
    ) -> AsyncIterator[cover_pb2.StreamCoverResponse]:
        async def gone(job: Row) -> ApiError:
            return not_found("cover", request.job)

        following = self._live.follow(request.job, "COVER", request.offset, self._store.covers, self._stored, gone)
        async with aclosing(following) as parts:
            async for part, ready in parts:
                if isinstance(part, audio_pb2.DataChunk):
                    yield cover_pb2.StreamCoverResponse(chunk=part, frames_ready=ready)
                else:
                    yield cover_pb2.StreamCoverResponse(end=messages.artifact(part, ""), frames_ready=ready)

    def _stored(self, row: Row, offset: int) -> AsyncIterator[audio_pb2.DataChunk]:
        name = f"covers/{row['id']}"
        return read_chunks(self._objects, row["object_key"], row["size_bytes"], offset, "cover", name)


def _cover(row: Row) -> cover_pb2.Cover:
    return cover_pb2.Cover(
        name=f"covers/{row['id']}",
        spec=json_format.ParseDict(row["spec"], job_pb2.CoverSpec()),
        artifact=messages.artifact(row, ""),
        semitones=row["semitones"],
        create_time=messages.timestamp(row["created_at"]),
    )
