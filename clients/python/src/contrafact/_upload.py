"""Uploads that go on where they broke off."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator

from contrafact._channel import Connection, upload_deadline
from contrafact._chunks import source_chunks
from contrafact._errors import ContrafactError, NotFound
from contrafact._retry import UPLOAD_RESUMABLE, Attempts
from contrafact._send import ByteProgress, reporter, send
from contrafact._source import Source
from contrafact.v1 import track_pb2
from contrafact.v1.track_pb2_grpc import TrackServiceStub


async def upload(
    connection: Connection,
    source: Source,
    progress: ByteProgress | None = None,
    request_id: str | None = None,
) -> track_pb2.Track:
    """Upload a measured source; see :meth:`contrafact.Client.upload`."""
    spec = track_pb2.UploadSpec(
        request_id=request_id or str(uuid.uuid4()),
        display_name=source.name,
        size_bytes=source.size or 0,
        sha256=source.sha256,
    )
    try:
        return await _upload(connection, source, spec, reporter(progress), resume=request_id is not None)
    except (asyncio.CancelledError, OSError):
        if request_id is None:  # nobody but us knows the id: what was stored could never be finished
            with contextlib.suppress(ContrafactError, TimeoutError):
                async with asyncio.timeout(2.0):
                    query = track_pb2.CancelUploadRequest(request_id=spec.request_id)
                    await connection.unary(connection.tracks.CancelUpload, query)
        raise


async def _upload(
    connection: Connection,
    source: Source,
    spec: track_pb2.UploadSpec,
    progress: ByteProgress,
    *,
    resume: bool,
) -> track_pb2.Track:
    attempts = Attempts(connection, UPLOAD_RESUMABLE)
    offset = 0
    while True:
        try:
            if resume:
                known = await _query(connection, spec.request_id)
                if known.HasField("track"):
                    return known.track
                if known.committed_bytes > offset:
                    attempts.progressed()
                offset = known.committed_bytes
            response: track_pb2.UploadTrackResponse = await send(
                TrackServiceStub(connection.blocking_channel).UploadTrack,
                _messages(source, spec, offset, progress),
                connection.metadata(),
                upload_deadline(source.size),
            )
            return response.track
        except ContrafactError as error:
            if not source.seekable:
                raise
            await attempts.failed(error)
            resume = True


async def _query(connection: Connection, request_id: str) -> track_pb2.QueryUploadResponse:
    """Ask how far the upload has come; one that the server never heard of has not begun."""
    try:
        query = track_pb2.QueryUploadRequest(request_id=request_id)
        return await connection.unary(connection.tracks.QueryUpload, query)
    except NotFound:
        return track_pb2.QueryUploadResponse()


def _messages(
    source: Source, spec: track_pb2.UploadSpec, offset: int, progress: ByteProgress
) -> Iterator[track_pb2.UploadTrackRequest]:
    """Yield the specification, everything from ``offset`` on, and the end."""
    yield track_pb2.UploadTrackRequest(spec=spec)
    progress(offset, source.size)
    for chunk in source_chunks(source, offset):
        yield track_pb2.UploadTrackRequest(chunk=chunk)
        offset = chunk.offset + len(chunk.data)
        progress(offset, source.size)
    yield track_pb2.UploadTrackRequest(end=track_pb2.UploadEnd(size_bytes=offset))
