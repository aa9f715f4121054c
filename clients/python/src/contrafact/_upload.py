"""Uploads that go on where they broke off."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable

from contrafact._channel import Connection, translated, upload_deadline
from contrafact._chunks import CHUNK_BYTES, make_chunk
from contrafact._errors import ContrafactError, NotFound
from contrafact._retry import UPLOAD_RESUMABLE, Attempts
from contrafact._source import Source
from contrafact.v1 import track_pb2

ByteProgress = Callable[[int, int | None], None]
"""Called with the bytes done so far and how many there are in all; None when unknown."""


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
        return await _upload(connection, source, spec, progress or _ignore, resume=request_id is not None)
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
    attempts = Attempts(connection.retry, UPLOAD_RESUMABLE)
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
            return await _send(connection, source, spec, offset, progress)
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


async def _send(
    connection: Connection, source: Source, spec: track_pb2.UploadSpec, offset: int, progress: ByteProgress
) -> track_pb2.Track:
    """Send everything from ``offset`` on and wait until the server has accepted it."""
    request_id, metadata = connection.metadata()
    call = connection.tracks.UploadTrack(  # type: ignore[call-arg]  # the stubs know only the iterator style
        metadata=metadata, timeout=upload_deadline(source.size)
    )
    try:
        with translated(request_id):
            # The server may answer before the end, when it has these bytes already: then writing is an
            # invalid state, and the answer is what counts.
            with contextlib.suppress(asyncio.InvalidStateError):
                await call.write(track_pb2.UploadTrackRequest(spec=spec))
                progress(offset, source.size)
                while data := await source.read(offset, CHUNK_BYTES):
                    await call.write(track_pb2.UploadTrackRequest(chunk=make_chunk(offset, data)))
                    offset += len(data)
                    progress(offset, source.size)
                await call.done_writing()
            response = await call
            return response.track
    finally:
        call.cancel()


def _ignore(_done: int, _total: int | None) -> None:
    """Show no progress."""
