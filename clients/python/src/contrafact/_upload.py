"""Uploads that go on where they broke off.

The bytes go through grpc's blocking API, from its own thread. Its asyncio API replaces what a server answers
before the end of an upload by "INTERNAL: Internal error from Core" (grpc/grpc issue 36066), and such answers
matter: a refusal says why, and a recording that is known already is not sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from contrafact._channel import Connection, upload_deadline
from contrafact._chunks import CHUNK_BYTES, make_chunk
from contrafact._errors import ContrafactError, NotFound, from_rpc
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
    loop = asyncio.get_running_loop()
    ended, stopped = asyncio.Event(), threading.Event()
    failures: list[Exception] = []

    def requests() -> Iterator[track_pb2.UploadTrackRequest]:
        yield track_pb2.UploadTrackRequest(spec=spec)
        position = offset
        try:
            while not stopped.is_set():
                loop.call_soon_threadsafe(progress, position, source.size)
                data = source.read(position, CHUNK_BYTES)
                if not data:
                    yield track_pb2.UploadTrackRequest(end=track_pb2.UploadEnd(size_bytes=position))
                    return
                yield track_pb2.UploadTrackRequest(chunk=make_chunk(position, data))
                position += len(data)
        except Exception as error:
            failures.append(error)
            raise  # grpc then cancels the call: the server must not take the pieces for the whole

    def done(_call: object) -> None:
        loop.call_soon_threadsafe(ended.set)

    request_id, metadata = connection.metadata()
    call: Any = connection.blocking_tracks.UploadTrack.future(
        requests(), timeout=upload_deadline(source.size), metadata=metadata
    )
    call.add_done_callback(done)
    try:
        await ended.wait()
    finally:
        stopped.set()
        call.cancel()
    error = call.exception()
    if error is None:
        response: track_pb2.UploadTrackResponse = call.result()
        return response.track
    if failures:
        raise failures[0]
    raise from_rpc(error, request_id)


def _ignore(_done: int, _total: int | None) -> None:
    """Show no progress."""
