"""Uploads: bytes in pieces to the object store, and from there, once checked, to a track.

Every piece is stored and then committed in PostgreSQL; what is committed survives any crash, and any API
server can go on. One stream at a time may write: a newer one takes over.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import grpc
from contrafact.v1 import audio_pb2, track_pb2

from servers.media.errors import MediaError
from servers.media.probe import TrackFacts, probe_isolated
from servers.orchestrator.api.resources import TRACK_COLUMNS
from servers.orchestrator.api.upload_writer import UploadWriter
from servers.orchestrator.chunks import check_sum
from servers.orchestrator.pacing import paced
from servers.orchestrator.tracks.register import (
    HEAD_BYTES,
    PROBE_SECONDS,
    NewRecording,
    NewTrack,
    Registrar,
    check_head,
    clean_name,
)
from servers.platform import telemetry
from servers.platform.errors import ApiError, invalid, not_found, precondition, request_id_reused
from servers.platform.settings import Settings
from servers.platform.tasks import to_the_end
from servers.storage import keys
from servers.storage.database import Connection, Pool, Row
from servers.storage.objects import ObjectMissing, ObjectStore

MAX_UPLOADS = 64  # streams at once, each holding up to a piece and a chunk in memory
MAX_PROBES = 2
MAX_FLUSHES = 4  # pieces being stored at once, each with a connection to the database
PROBE_WAIT_SECONDS = 120.0

# Refusals after which no other bytes could make the upload right.
_HOPELESS = {"TRACK_TOO_LARGE", "SIZE_MISMATCH", "NOT_AUDIO", "UNSUPPORTED_CONTAINER"}


class Uploads:
    """Takes uploads in and turns them into tracks."""

    def __init__(self, pool: Pool, objects: ObjectStore, settings: Settings) -> None:
        self._pool = pool
        self._objects = objects
        self._registrar = Registrar(pool, objects)
        self._settings = settings
        self._active = 0
        self._probes = asyncio.Semaphore(MAX_PROBES)
        self._flushes = asyncio.Semaphore(MAX_FLUSHES)

    async def open(self, owner: str, spec: track_pb2.UploadSpec) -> Row:
        """The upload that ``spec`` names, begun now or earlier."""
        if spec.size_bytes > self._settings.max_upload_bytes:
            raise self._too_large("spec.size_bytes")
        upload = await self._pool.fetchrow(
            """INSERT INTO uploads (id, owner, request_id, display_name, size_bytes, sha256)
               VALUES ($1, $2, $3, $4, $5, $6)
               ON CONFLICT (owner, request_id) DO UPDATE SET updated_at = now() RETURNING *""",
            uuid4(),
            owner,
            UUID(spec.request_id),
            clean_name(spec.display_name),
            spec.size_bytes,
            spec.sha256,
        )
        assert upload is not None
        if (upload["size_bytes"], upload["sha256"]) != (spec.size_bytes, spec.sha256):
            raise request_id_reused("this request_id names an upload with another size or sha256", "spec.request_id")
        return upload

    async def find(self, owner: str, request_id: str) -> Row:
        """The upload of that request, or NOT_FOUND."""
        upload = await self._pool.fetchrow(
            "SELECT * FROM uploads WHERE owner = $1 AND request_id = $2", owner, UUID(request_id)
        )
        if upload is None:
            raise not_found("upload", request_id)
        return upload

    async def track_of(self, upload: Row) -> Row | None:
        """The track that an upload became, if it is complete; also one with the very bytes it announces."""
        track = await self._pool.fetchrow(
            f"""SELECT {TRACK_COLUMNS} FROM tracks t JOIN recordings r USING (sha256)
                WHERE t.id = $1 OR (t.owner = $2 AND t.sha256 = $3) LIMIT 1""",
            upload["track_id"],
            upload["owner"],
            upload["sha256"],
        )
        if track is not None and upload["track_id"] is None:  # so that it goes when the track goes
            try:
                await self._pool.execute("UPDATE uploads SET track_id = $2 WHERE id = $1", upload["id"], track["id"])
            except asyncpg.ForeignKeyViolationError:  # deleted in this very moment
                return None
        return track

    async def receive(self, upload: Row, requests: AsyncIterator[track_pb2.UploadTrackRequest]) -> None:
        """Store the chunks of a stream, ``paced``; returns when all have arrived."""
        if self._active >= MAX_UPLOADS:
            raise ApiError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MANY_UPLOADS",
                "too many uploads at once, try again later",
            )
        self._active += 1
        try:
            writer = await UploadWriter.open(self._pool, self._objects, self._flushes, upload["id"])
            try:
                size = await self._receive_chunks(upload, requests, writer)
            finally:
                # Also when the client is gone or misbehaved: what arrived in order need not be sent again.
                await to_the_end(writer.flush())
        except ApiError as error:
            if error.reason in _HOPELESS:
                await self.discard(upload)
            raise
        finally:
            self._active -= 1
        if size is None or writer.position < upload["size_bytes"]:
            raise ApiError(
                grpc.StatusCode.OUT_OF_RANGE,
                "UPLOAD_INCOMPLETE",
                f"the stream ended early; go on at {writer.position}",
                metadata={"committed_bytes": str(writer.position)},
            )
        if size != writer.position:
            raise invalid("SIZE_MISMATCH", f"{writer.position} bytes came, {size} were sent", "end.size_bytes")

    async def _receive_chunks(
        self, upload: Row, requests: AsyncIterator[track_pb2.UploadTrackRequest], writer: UploadWriter
    ) -> int | None:
        """Pass chunks on; returns the size in the message that ends the upload, None if the stream broke."""
        head = bytearray() if writer.position == 0 else None
        async for request in requests:
            match request.WhichOneof("payload"):
                case "chunk":
                    self._check(upload, request.chunk, writer.position)
                    if head is not None:
                        head += request.chunk.data
                        if len(head) >= HEAD_BYTES:
                            self._check_head(bytes(head))
                            head = None
                    await writer.write(request.chunk.data)
                case "end":
                    return request.end.size_bytes
                case _:
                    raise invalid("UNEXPECTED_SPEC", "the specification comes once, first", "spec")
        return None

    def paced(
        self, requests: AsyncIterator[track_pb2.UploadTrackRequest]
    ) -> AsyncIterator[track_pb2.UploadTrackRequest]:
        """Pass messages on, and give up on clients that send nothing, or hardly anything, for long."""
        return paced(requests, lambda request: len(request.chunk.data), self._settings, "the upload can be resumed")

    def _check(self, upload: Row, chunk: audio_pb2.DataChunk, position: int) -> None:
        end = chunk.offset + len(chunk.data)
        if chunk.offset != position:
            raise ApiError(
                grpc.StatusCode.OUT_OF_RANGE,
                "UPLOAD_OFFSET_MISMATCH",
                f"offset {chunk.offset} does not follow: {position} is next",
                metadata={"expected_offset": str(position)},
                fields=[("chunk.offset", f"must be {position}")],
            )
        message = f"the chunk at offset {chunk.offset} was damaged on its way; send it again"
        check_sum(chunk, "chunk", message, expected_offset=str(position))
        if end > self._settings.max_upload_bytes:
            raise self._too_large("chunk.data")
        if upload["size_bytes"] and end > upload["size_bytes"]:
            raise invalid("SIZE_MISMATCH", f"more bytes than the {upload['size_bytes']} announced", "spec.size_bytes")

    def _check_head(self, head: bytes) -> None:
        try:
            check_head(head, self._settings.max_upload_bytes)
        except MediaError as error:
            raise invalid(error.reason, str(error)) from error

    def _too_large(self, field: str) -> ApiError:
        limit = self._settings.max_upload_bytes
        return invalid("TRACK_TOO_LARGE", f"a track has at most {limit} bytes", field, limit_bytes=str(limit))

    async def adopt(self, upload: Row) -> None:
        """Take in what was put by HTTP where ``url_key`` says."""
        if upload["committed_bytes"]:
            if upload["committed_bytes"] != upload["size_bytes"]:
                raise precondition("UPLOAD_BEGUN", "this upload has begun as a stream and must end as one")
            return  # taken in before
        try:
            size = await self._objects.size(url_key(upload))
        except ObjectMissing:
            raise precondition("UPLOAD_INCOMPLETE", "nothing has been put to the upload URL yet") from None
        if size > self._settings.max_upload_bytes:
            await self.discard(upload)
            raise self._too_large("spec.size_bytes")
        if size != upload["size_bytes"]:
            await self.discard(upload)
            raise invalid(
                "SIZE_MISMATCH", f"{size} bytes were put, {upload['size_bytes']} announced", "spec.size_bytes"
            )
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "INSERT INTO upload_pieces (upload_id, start, size_bytes) VALUES ($1, 0, $2) ON CONFLICT DO NOTHING",
                upload["id"],
                size,
            )
            await connection.execute("UPDATE uploads SET committed_bytes = $2 WHERE id = $1", upload["id"], size)

    async def complete(self, upload: Row) -> tuple[Row, bool]:
        """Check what arrived and make it a track; returns the track and whether the caller had it already.

        Bytes that are refused are removed: the same upload can begin again.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="contrafact-", dir=self._settings.temporary_folder) as folder:
                path = Path(folder) / "upload"
                sha256, size = await self._assemble(upload["id"], path)
                if size == 0:
                    raise invalid("EMPTY_FILE", "the upload has no bytes")
                if upload["sha256"] and upload["sha256"] != sha256:
                    raise invalid("CHECKSUM_MISMATCH", "the bytes do not have the announced sha256", "spec.sha256")
                recording = NewRecording(path, sha256, size, self._probe)
                facts = await self._registrar.examine(recording)
                # To the end: a client that goes away now must not leave an object that nobody knows.
                new = NewTrack(upload["owner"], upload["display_name"], recording)
                track, existed = await to_the_end(self._store(upload, new, facts))
        except (ApiError, ObjectMissing) as error:
            # The same upload may have been completed, and its pieces removed, by a call that went before.
            stored = await self._pool.fetchrow("SELECT * FROM uploads WHERE id = $1", upload["id"])
            if stored is not None and (done := await self.track_of(stored)):
                return done, True
            if isinstance(error, ApiError) and error.code is grpc.StatusCode.INVALID_ARGUMENT:
                await self.discard(upload)
            raise
        telemetry.log().info("track stored", bytes=size, existed=existed)
        return track, existed

    async def _assemble(self, upload_id: UUID, path: Path) -> tuple[str, int]:
        """Write the pieces of an upload to one file; returns its digest and size."""
        pieces = await self._pool.fetch(
            "SELECT start FROM upload_pieces WHERE upload_id = $1 ORDER BY start", upload_id
        )
        digest, size = hashlib.sha256(), 0
        with path.open("wb") as file:
            for piece in pieces:
                async for data in self._objects.read(keys.upload_piece(upload_id, piece["start"])):
                    size += len(data)
                    if size > self._settings.max_upload_bytes:  # put by URL after ``adopt`` looked
                        raise self._too_large("spec.size_bytes")
                    file.write(data)
                    digest.update(data)
        return digest.hexdigest(), size

    async def _probe(self, path: Path) -> TrackFacts:
        try:
            async with asyncio.timeout(PROBE_WAIT_SECONDS):
                await self._probes.acquire()
        except TimeoutError:
            raise ApiError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MANY_UPLOADS",
                "too many recordings are being checked; complete the upload later",
                retry_after=30,
            ) from None
        try:
            return await probe_isolated(path, max_seconds=self._settings.max_track_seconds, timeout=PROBE_SECONDS)
        except MediaError as error:
            raise invalid(error.reason, str(error)) from error
        finally:
            self._probes.release()

    async def _store(self, upload: Row, new: NewTrack, facts: TrackFacts | None) -> tuple[Row, bool]:
        track: Row | None = None

        async def complete(connection: Connection, track_id: UUID) -> None:
            nonlocal track
            track = await connection.fetchrow(
                f"SELECT {TRACK_COLUMNS} FROM tracks t JOIN recordings r USING (sha256) WHERE t.id = $1", track_id
            )
            await connection.execute("UPDATE uploads SET track_id = $2 WHERE id = $1", upload["id"], track_id)
            await connection.execute("DELETE FROM upload_pieces WHERE upload_id = $1", upload["id"])

        _, existed = await self._registrar.register(new, facts, complete)
        await self._objects.delete_prefix(keys.upload_prefix(upload["id"]))
        assert track is not None
        return track, existed

    async def discard(self, upload: Row) -> None:
        """Forget an upload and remove what it stored."""
        await self._pool.execute("DELETE FROM uploads WHERE id = $1", upload["id"])
        await self._objects.delete_prefix(keys.upload_prefix(upload["id"]))


def url_key(upload: Row) -> str:
    """Where an upload by HTTP puts its bytes."""
    return keys.upload_piece(upload["id"], 0)
