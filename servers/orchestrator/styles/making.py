"""How styles come to be: of what clients send, or of a track."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import grpc
from contrafact.v1 import grain_pb2, job_pb2, style_pb2
from google.protobuf import json_format

from servers.grains.library import MAX_SAMPLES
from servers.media.errors import MediaError
from servers.media.probe import TrackFacts, probe_isolated
from servers.orchestrator.api.creation import JobCreator, Subject
from servers.orchestrator.chunks import Expected, Received, receive
from servers.orchestrator.jobs import locks
from servers.orchestrator.pacing import paced
from servers.orchestrator.stretches import part
from servers.orchestrator.styles.cuts import LOWEST_RATE, completed, library_id
from servers.orchestrator.styles.store import NewStyle, StyleStore
from servers.orchestrator.tracks.register import NewRecording, Registrar, clean_name
from servers.platform.errors import ApiError, invalid, not_found, precondition, request_id_reused
from servers.platform.settings import Settings
from servers.platform.tasks import to_the_end
from servers.storage.database import Connection, Pool, Row, exclusive
from servers.storage.objects import ObjectStore

MAX_UPLOADS = 16  # at once in one API server
MAX_PROBES = 2
MAX_STORED = 4  # styles being stored at once, each with two connections to the database
PROBE_SECONDS = 120.0
PATIENCE_SECONDS = 5.0  # with whoever works on a track's bytes

Requests = AsyncIterator[style_pb2.UploadStyleRequest]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a request asks for, but for the sound."""

    owner: str
    request_id: UUID
    display_name: str
    cut: grain_pb2.Cut
    priority: job_pb2.Priority.ValueType

    def check_same(self, row: Row, sha256: str) -> None:
        """ALREADY_EXISTS if the style of this request is of another sound ("": not known), or cut in another way."""
        if row["cut"] != _as_json(self.cut) or sha256 not in ("", row["sha256"]):
            raise request_id_reused("this request_id has made a style of another sound, or with another cut")


class StyleMaker:
    """Makes styles, each with the job that cuts it.

    Args:
        pool, objects, styles, creator: What it works with.
        settings: What a style may be, and how patient to be with those who send one.
    """

    def __init__(
        self, pool: Pool, objects: ObjectStore, styles: StyleStore, creator: JobCreator, settings: Settings
    ) -> None:
        self._pool = pool
        self._registrar = Registrar(pool, objects)
        self._styles = styles
        self._creator = creator
        self._settings = settings
        self._uploads = 0
        self._probes = asyncio.Semaphore(MAX_PROBES)
        self._places = asyncio.Semaphore(MAX_STORED)

    async def of_upload(self, owner: str, requests: Requests) -> Row:
        """The style of a stream of messages, as StyleStore has it; ApiError if it is refused."""
        with_patience = paced(requests, lambda request: len(request.chunk.data), self._settings, "send the sound again")
        async with self._upload():
            first = await anext(with_patience, None)
            if first is None or first.WhichOneof("payload") != "spec":
                raise invalid("SPEC_MISSING", "the first message must be the specification", "spec")
            spec = first.spec
            wanted = _Wanted(
                owner, UUID(spec.request_id), clean_name(spec.display_name), completed(spec.cut), spec.priority
            )
            known = await self._styles.of_request(owner, wanted.request_id)
            if known is not None:
                wanted.check_same(known, spec.sha256)
                if spec.sha256:  # these very bytes need not be sent again
                    return known
            with tempfile.TemporaryDirectory(prefix="contrafact-", dir=self._settings.temporary_folder) as folder:
                limit = self._settings.max_style_bytes
                expected = Expected("the sound", limit, lambda field: _too_large(limit, field))
                received = await receive(with_patience, Path(folder) / "sound", expected)
                if received.size == 0:
                    raise invalid("EMPTY_FILE", "the sound has no bytes", "chunk")
                if spec.sha256 not in ("", received.sha256):
                    raise invalid("CHECKSUM_MISMATCH", "the bytes do not have the announced sha256", "spec.sha256")
                if known is not None:
                    wanted.check_same(known, received.sha256)
                    return known
                return await self._store_upload(wanted, received)

    async def of_track(self, owner: str, request: style_pb2.CreateStyleRequest, track: Row | None) -> Row:
        """The style that a request makes of a track, as StyleStore has it; ApiError if it is refused.

        Args:
            owner: Whose it will be.
            request: What it asks for.
            track: The track; None: there is none, which matters only if the request was not made before.
        """
        name = clean_name(request.display_name) if request.display_name else track["display_name"] if track else ""
        wanted = _Wanted(owner, UUID(request.request_id), name, completed(request.cut), request.priority)
        known = await self._styles.of_request(owner, wanted.request_id)
        if known is not None:
            wanted.check_same(known, track["sha256"] if track else "")
            return known
        if track is None:
            raise not_found("track", request.track)
        rate, sha256 = track["sample_rate"], track["sha256"]
        if rate < LOWEST_RATE:
            message = f"a track of {rate} Hz cannot be cut; {LOWEST_RATE} Hz are needed"
            raise precondition("TRACK_RATE_TOO_LOW", message)
        self._check_part(wanted.cut, rate, track["channels"], track["frames"], "cut")

        async def store() -> None:
            async with self._held(sha256) as connection, connection.transaction():
                if not await connection.fetchval("SELECT 1 FROM tracks WHERE id = $1", track["id"]):
                    raise not_found("track", request.track)
                job = await self._insert(connection, wanted, sha256)
            await self._dispatch(job)

        await to_the_end(store())
        return await self._stored(wanted)

    @asynccontextmanager
    async def _held(self, sha256: str) -> AsyncIterator[Connection]:
        """Keep out who would delete a track, and its recording with it."""
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await held.enter_async_context(self._places)
                    connection = await held.enter_async_context(exclusive(self._pool, sha256))
            except TimeoutError as error:
                message = "something else is being stored of the track; try again"
                code = grpc.StatusCode.RESOURCE_EXHAUSTED
                raise ApiError(code, "TRACK_BUSY", message, retry_after=5) from error
            yield connection

    @asynccontextmanager
    async def _upload(self) -> AsyncIterator[None]:
        if self._uploads >= MAX_UPLOADS:
            message = "too many sounds are being uploaded; try again later"
            raise ApiError(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_UPLOADS", message, retry_after=10)
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    async def _store_upload(self, wanted: _Wanted, received: Received) -> Row:
        new = NewRecording(received.path, received.sha256, received.size, self._probe)
        facts = await self._registrar.examine(new)
        rate, channels, frames = (facts.sample_rate, facts.channels, facts.frames) if facts else await self._known(new)
        if rate < LOWEST_RATE:
            raise invalid("SAMPLE_RATE_TOO_LOW", f"the sound has {rate} Hz; {LOWEST_RATE} are needed", "chunk")
        self._check_part(wanted.cut, rate, channels, frames, "spec.cut")

        async def store() -> None:
            async with self._places:
                job = await self._registrar.keep(
                    new, facts, lambda connection: self._insert(connection, wanted, received.sha256)
                )
            await self._dispatch(job)

        await to_the_end(store())
        return await self._stored(wanted)

    async def _known(self, new: NewRecording) -> tuple[int, int, int]:
        """Rate, channels and frames of a recording that somebody has."""
        query = "SELECT sample_rate, channels, frames FROM recordings WHERE sha256 = $1"
        row = await self._pool.fetchrow(query, new.sha256)
        if row is not None:
            return row["sample_rate"], row["channels"], row["frames"]
        facts = await new.probe(new.path)  # deleted since we looked
        return facts.sample_rate, facts.channels, facts.frames

    async def _probe(self, path: Path) -> TrackFacts:
        try:
            async with self._probes:
                return await probe_isolated(path, max_seconds=self._settings.max_track_seconds, timeout=PROBE_SECONDS)
        except MediaError as error:
            raise invalid(error.reason, error.message, "chunk") from error

    def _check_part(self, cut: grain_pb2.Cut, rate: int, channels: int, frames: int, field: str) -> None:
        _, used = part(cut.start_seconds, cut.seconds, rate, frames)
        most = min(self._settings.max_style_seconds, MAX_SAMPLES // min(2, channels) / rate)
        if used < 1:
            raise invalid("STRETCH_OUTSIDE", "nothing of the sound is there", f"{field}.start_seconds")
        if used > most * rate:
            message = (
                f"{used / rate:.1f} s are to be cut, and at most {most:g} s at {rate} Hz can be; name a shorter part"
            )
            raise invalid("STYLE_TOO_LONG", message, f"{field}.seconds", limit_seconds=f"{most:g}")

    async def _insert(self, connection: Connection, wanted: _Wanted, sha256: str) -> Row | None:
        """Write style and job as part of a transaction; returns the job, None if the request has made a style since."""
        style_id, library = uuid4(), library_id(sha256, wanted.cut)
        words = (wanted.owner, wanted.request_id, wanted.display_name, sha256, _as_json(wanted.cut))
        if not await self._styles.insert(connection, NewStyle(style_id, *words, library)):
            wanted.check_same(await self._stored(wanted), sha256)
            return None
        spec = job_pb2.StyleSpec(style=f"styles/{style_id}", cut=wanted.cut)
        about = Subject(None, None, locks.of_style(library))
        # The style answers for the request: were it deleted, the same request would make another job.
        job = await self._creator.create_within(connection, "STYLE", spec, style_id, wanted.priority, about)
        await self._styles.assign(connection, style_id, job["id"])
        return job

    async def _dispatch(self, job: Row | None) -> None:
        if job is not None:
            await self._creator.dispatch(job)

    async def _stored(self, wanted: _Wanted) -> Row:
        row = await self._styles.of_request(wanted.owner, wanted.request_id)
        if row is None:  # deleted in this very moment
            raise ApiError(grpc.StatusCode.ABORTED, "STYLE_DELETED", "the style was deleted meanwhile")
        return row


def _as_json(cut: grain_pb2.Cut) -> dict[str, object]:
    made: dict[str, object] = json_format.MessageToDict(cut, preserving_proto_field_name=True)
    return made


def _too_large(limit: int, field: str) -> ApiError:
    return invalid("STYLE_TOO_LARGE", f"the sound of a style has at most {limit} bytes", field, limit_bytes=str(limit))
