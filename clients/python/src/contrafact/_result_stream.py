"""Listening to a cover or a mix while it is made: its bytes, none lost and none twice."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrafact._channel import Connection
from contrafact._chunks import make_chunk, new_bytes
from contrafact._errors import ContrafactError, DataLoss, OutOfRange, Unavailable
from contrafact._files import PartFile
from contrafact._retry import Attempts
from contrafact._watch import check_not_lost
from contrafact.v1 import cover_pb2, mix_pb2
from contrafact.v1.artifact_pb2 import Artifact


@dataclass(frozen=True)
class Result:
    """What is made: what people call it, the method of a connection that streams it, and its messages."""

    word: str
    method: Callable[[Connection], Any]
    request: Any
    response: Any


COVER = Result(
    "cover",
    lambda connection: connection.covers.StreamCover,
    cover_pb2.StreamCoverRequest,
    cover_pb2.StreamCoverResponse,
)
MIX = Result(
    "mix", lambda connection: connection.mixes.StreamMix, mix_pb2.StreamMixRequest, mix_pb2.StreamMixResponse
)


@dataclass(frozen=True)
class ResultProgress:
    """How far a cover or a mix has come.

    Attributes:
        path: where the finished file will be, or is.
        size_bytes: bytes on disk so far, in ``path`` with ".part" until it is finished.
        frames_ready: frames from the beginning that can be decoded by now; 0 when unknown.
        finished: whether the file is complete, checked, and has its name.
    """

    path: Path
    size_bytes: int
    frames_ready: int
    finished: bool


class _Received:
    """What has arrived of a result, from ``start`` on."""

    def __init__(self, what: Result, start: int) -> None:
        self._what = what
        self.start = self.position = start
        self._digest = hashlib.sha256()

    def new(self, response: Any) -> Any:
        """Return what is new in some bytes; None: nothing is."""
        position = self.position
        data = new_bytes(response.chunk, position)
        self.position += len(data)
        self._digest.update(data)
        if len(data) == len(response.chunk.data):
            return response
        if not data:
            return None
        return self._what.response(chunk=make_chunk(position, data), frames_ready=response.frames_ready)

    def check(self, end: Artifact) -> None:
        """Raise Unavailable when bytes are missing before the end, DataLoss when they are others."""
        if self.position < end.size_bytes:
            raise Unavailable(
                f"the {self._what.word} ended at byte {self.position} of {end.size_bytes}",
                reason="STREAM_ENDED",
            )
        if self.position > end.size_bytes or (self.start == 0 and self._digest.hexdigest() != end.sha256):
            raise DataLoss(f"the finished {self._what.word} has other bytes", reason="CONTENT_MISMATCH")


async def stream_result(
    connection: Connection, what: Result, job: str, offset: int = 0
) -> AsyncGenerator[Any, None]:
    """Yield the bytes of a result, then its end; see :meth:`contrafact.JobHandle.stream_cover`."""
    received, attempts, again = _Received(what, offset), Attempts(connection), offset > 0
    while True:
        request = what.request(job=job, offset=received.position)
        try:
            async with contextlib.aclosing(connection.stream(what.method(connection), request)) as responses:
                async for response in responses:
                    if response.HasField("end"):
                        received.check(response.end)
                        yield response
                        return
                    fresh = received.new(response)
                    if fresh is not None:
                        attempts.progressed()
                        yield fresh
            raise Unavailable(f"the stream ended without the {what.word}'s end", reason="STREAM_ENDED")
        except ContrafactError as error:
            # Another attempt made other bytes, or fewer than have arrived: from the beginning, once.
            differs = error.reason == "CONTENT_MISMATCH" or isinstance(error, OutOfRange)
            if differs and not again:
                received, again = _Received(what, 0), True
                continue
            if error.status in ("ABORTED", "FAILED_PRECONDITION", "CANCELLED") or (
                error.reason == "STREAM_ENDED"
            ):
                await check_not_lost(connection, job)
            await attempts.failed(error)


async def save_result(
    connection: Connection,
    what: Result,
    job: str,
    path: Path,
    progress: Callable[[ResultProgress], None] | None = None,
) -> Path:
    """Write the result of a job to a file; see :meth:`contrafact.JobHandle.save_cover`."""
    with contextlib.closing(PartFile(path)) as file:
        async with contextlib.aclosing(stream_result(connection, what, job)) as responses:
            async for response in responses:
                finished = response.HasField("end")
                if finished:
                    file.finish(response.end.sha256, response.end.size_bytes)
                else:
                    if response.chunk.offset < file.size:
                        file.restart()
                    await file.write(response.chunk.data)
                if progress is not None:
                    frames = response.end.frames if finished else response.frames_ready
                    progress(ResultProgress(path, file.size, frames, finished))
    return path
