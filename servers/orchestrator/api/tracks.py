"""TrackService."""

from __future__ import annotations

import datetime as dt
import unicodedata
from collections.abc import AsyncIterator, Sequence
from typing import Any

from contrafact.v1 import job_pb2, track_pb2, track_pb2_grpc

from servers.orchestrator.analyses.cache import AnalysisCache
from servers.orchestrator.api import marks
from servers.orchestrator.api.covers import find_cover
from servers.orchestrator.api.mixes import find_mix
from servers.orchestrator.api.resources import (
    TRACK_COLUMNS,
    check_mask,
    find_track,
    page_limit,
    read_chunks,
    read_time_token,
    time_page,
    track,
)
from servers.orchestrator.api.uploads import Uploads, url_key
from servers.orchestrator.api.voices import find_voice, sample_of
from servers.orchestrator.jobs.messages import timestamp
from servers.orchestrator.jobs.retention import stem_used
from servers.orchestrator.jobs.store import JobStore
from servers.orchestrator.mixes.store import MixStore, remove_objects
from servers.orchestrator.tracks.register import clean_name, forget_unused, normal_tags, remove_bytes
from servers.orchestrator.voices.store import VoiceStore
from servers.platform.errors import invalid, precondition
from servers.platform.identity import principal
from servers.platform.interceptors import Context
from servers.platform.tasks import to_the_end
from servers.storage import keys
from servers.storage.database import Pool, Row, exclusive
from servers.storage.objects import ObjectStore

UPLOAD_URL_TTL = dt.timedelta(hours=1)


class TrackService(track_pb2_grpc.TrackServiceServicer):
    """Uploads, look-ups, downloads and deletions of tracks."""

    def __init__(
        self,
        pool: Pool,
        objects: ObjectStore,
        jobs: JobStore,
        uploads: Uploads,
        stems: marks.MarkedStems,
        analyses: AnalysisCache,
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._jobs = jobs
        self._uploads = uploads
        self._stems = stems
        self._analyses = analyses

    async def UploadTrack(
        self, request_iterator: AsyncIterator[track_pb2.UploadTrackRequest], context: Context
    ) -> track_pb2.UploadTrackResponse:
        requests = self._uploads.paced(request_iterator)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("payload") != "spec":
            raise invalid("SPEC_MISSING", "the first message must be the specification", "spec")
        upload = await self._uploads.open(principal().id, first.spec)
        row = await self._uploads.track_of(upload)
        existed = row is not None
        if row is None:
            await self._uploads.receive(upload, requests)
            row, existed = await self._uploads.complete(upload)
        return track_pb2.UploadTrackResponse(track=track(row), already_existed=existed)

    async def QueryUpload(
        self, request: track_pb2.QueryUploadRequest, context: Context
    ) -> track_pb2.QueryUploadResponse:
        upload = await self._uploads.find(principal().id, request.request_id)
        row = await self._uploads.track_of(upload)
        return track_pb2.QueryUploadResponse(
            committed_bytes=upload["committed_bytes"], track=track(row) if row else None
        )

    async def CancelUpload(
        self, request: track_pb2.CancelUploadRequest, context: Context
    ) -> track_pb2.CancelUploadResponse:
        await self._uploads.discard(await self._uploads.find(principal().id, request.request_id))
        return track_pb2.CancelUploadResponse()

    async def CreateUploadUrl(
        self, request: track_pb2.CreateUploadUrlRequest, context: Context
    ) -> track_pb2.CreateUploadUrlResponse:
        upload = await self._uploads.open(principal().id, request.spec)
        if upload["committed_bytes"]:
            raise precondition("UPLOAD_BEGUN", "this upload has begun as a stream")
        url = self._objects.upload_url(url_key(upload), UPLOAD_URL_TTL)
        expires = dt.datetime.now(dt.UTC) + UPLOAD_URL_TTL
        return track_pb2.CreateUploadUrlResponse(url=url, expire_time=timestamp(expires))

    async def CompleteUpload(
        self, request: track_pb2.CompleteUploadRequest, context: Context
    ) -> track_pb2.CompleteUploadResponse:
        upload = await self._uploads.find(principal().id, request.request_id)
        row = await self._uploads.track_of(upload)
        existed = row is not None
        if row is None:
            await self._uploads.adopt(upload)
            row, existed = await self._uploads.complete(upload)
        return track_pb2.CompleteUploadResponse(track=track(row), already_existed=existed)

    async def GetTrack(self, request: track_pb2.GetTrackRequest, context: Context) -> track_pb2.GetTrackResponse:
        return track_pb2.GetTrackResponse(track=track(await find_track(self._pool, request.name)))

    async def ListTracks(self, request: track_pb2.ListTracksRequest, context: Context) -> track_pb2.ListTracksResponse:
        limit = page_limit(request.page_size)
        # In no name or tag; and PostgreSQL cannot be asked.
        if any("\0" in text for text in (request.display_name_contains, *request.tags)):
            return track_pb2.ListTracksResponse()
        tags = normal_tags(request.tags)
        uploaded_at, track_id = read_time_token(request.page_token) or (None, None)
        rows = await self._pool.fetch(
            f"""SELECT {TRACK_COLUMNS} FROM tracks t JOIN recordings r USING (sha256)
                WHERE t.owner = $1
                  AND ($2::timestamptz IS NULL OR (t.created_at, t.id) < ($2, $3::uuid))
                  AND position(lower($4) IN lower(t.display_name)) > 0
                  {"AND t.tags @> $6" if tags else ""}
                ORDER BY t.created_at DESC, t.id DESC LIMIT $5""",
            principal().id,
            uploaded_at,
            track_id,
            unicodedata.normalize("NFC", request.display_name_contains),  # as names are
            limit + 1,
            *([tags] if tags else []),
        )
        rows, token = time_page(rows, limit, "uploaded_at")
        return track_pb2.ListTracksResponse(tracks=[track(row) for row in rows], next_page_token=token)

    async def UpdateTrack(
        self, request: track_pb2.UpdateTrackRequest, context: Context
    ) -> track_pb2.UpdateTrackResponse:
        changes = _changes(request.track, request.update_mask.paths)
        found = await find_track(self._pool, request.track.name)
        columns = ", ".join(f"{column} = ${number}" for number, column in enumerate(changes, 2))
        await self._pool.execute(f"UPDATE tracks SET {columns} WHERE id = $1", found["id"], *changes.values())
        row = await find_track(self._pool, request.track.name)
        jobs: dict[str, str] = {}
        if "marks" in changes and row["marks"]:
            jobs = await self._stems.prepare(row, request.priority or job_pb2.PRIORITY_BACKGROUND)
        return track_pb2.UpdateTrackResponse(track=track(row), jobs=sorted(set(jobs.values())))

    async def DeleteTrack(
        self, request: track_pb2.DeleteTrackRequest, context: Context
    ) -> track_pb2.DeleteTrackResponse:
        row = await find_track(self._pool, request.name)
        unfinished = await self._jobs.unfinished_of_track(row["id"])
        if unfinished and not request.cancel_jobs:
            raise precondition("TRACK_IN_USE", f"{len(unfinished)} unfinished jobs use this track")
        for job_id in unfinished:
            await self._jobs.cancel(job_id, row["owner"])
        await to_the_end(self._delete(row))
        return track_pb2.DeleteTrackResponse()

    async def _delete(self, row: Row) -> None:
        await self._analyses.forget(row["id"])
        # Against an upload of the same bytes, which would find the recording and not store it, and against a
        # job that stores stems of it.
        async with exclusive(self._pool, row["sha256"]) as connection:
            async with connection.transaction():
                # A repeated request would take a completed upload's word for bytes that are gone.
                uploads = await connection.fetch("DELETE FROM uploads WHERE track_id = $1 RETURNING id", row["id"])
                # In this order, as who changes them.
                await connection.execute("SELECT 1 FROM projects WHERE track_id = $1 ORDER BY id FOR UPDATE", row["id"])
                mixes = await connection.fetch(
                    """SELECT id FROM mixes WHERE project_id IN (SELECT id FROM projects WHERE track_id = $1)
                       ORDER BY id FOR UPDATE""",
                    row["id"],
                )
                layers = await connection.fetch("SELECT id FROM layers WHERE sha256 = $1", row["sha256"])
                await connection.execute("DELETE FROM tracks WHERE id = $1", row["id"])
                orphaned = await forget_unused(connection, row["sha256"])
            # After the commit: rows whose bytes are gone would be worse than bytes without a row.
            if orphaned is not None:
                await remove_bytes(self._objects, row["sha256"], orphaned)
                for layer in layers:
                    await self._objects.delete_prefix(keys.layer_prefix(layer["id"]))
            for upload in uploads:
                await self._objects.delete_prefix(keys.upload_prefix(upload["id"]))
        await remove_objects(self._pool, self._objects, [mix["id"] for mix in mixes])

    async def DownloadTrack(
        self, request: track_pb2.DownloadTrackRequest, context: Context
    ) -> AsyncIterator[track_pb2.DownloadTrackResponse]:
        row = await find_track(self._pool, request.name)
        async for chunk in read_chunks(
            self._objects, row["object_key"], row["size_bytes"], request.offset, "track", request.name
        ):
            yield track_pb2.DownloadTrackResponse(chunk=chunk)

    async def CreateDownloadUrl(
        self, request: track_pb2.CreateDownloadUrlRequest, context: Context
    ) -> track_pb2.CreateDownloadUrlResponse:
        if request.name.startswith("voices/"):
            key, _, file_name = sample_of(await find_voice(VoiceStore(self._pool), request.name))
        elif request.name.startswith("covers/"):
            cover = await find_cover(self._pool, request.name)
            key, file_name = cover["object_key"], f"{cover['id']}.{cover['format']}"
        elif request.name.startswith("mixes/"):
            mix = await find_mix(MixStore(self._pool, self._objects), request.name)
            if mix["object_key"] is None:
                raise precondition("MIX_NOT_READY", "the mix was not rendered yet")
            key, file_name = mix["object_key"], f"{mix['id']}.{mix['format']}"
        elif "/stems/" in request.name:
            _, stem = await self._stems.find(request.name)
            await stem_used(self._pool, stem)
            key, file_name = stem["object_key"], request.name.split("/")[-1]
        else:
            row = await find_track(self._pool, request.name)
            key = row["object_key"]
            file_name = f"{row['sha256'][:16]}.{key.rpartition('.')[2]}"
        ttl = request.ttl.ToTimedelta() if request.HasField("ttl") else dt.timedelta(hours=1)
        url = self._objects.download_url(key, ttl, file_name)
        return track_pb2.CreateDownloadUrlResponse(url=url, expire_time=timestamp(dt.datetime.now(dt.UTC) + ttl))


def _changes(message: track_pb2.Track, paths: Sequence[str]) -> dict[str, Any]:
    """Columns to change, and their values."""
    values: dict[str, Any] = {
        "display_name": clean_name(message.display_name),
        "tags": normal_tags(message.tags),
        "marks": marks.names(message.marks),
    }
    check_mask(paths, values)
    if "display_name" in paths and not 1 <= len(message.display_name) <= 255:
        raise invalid("INVALID_FIELD", "must have 1 to 255 characters", "track.display_name")
    if any(not tag.isprintable() for tag in message.tags):
        raise invalid("INVALID_FIELD", "tags must be printable", "track.tags")
    return {path: values[path] for path in paths}
