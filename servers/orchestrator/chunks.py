"""Chunks of what clients send, and files of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import grpc
from contrafact.v1 import audio_pb2

from servers.platform.errors import ApiError, invalid


def check_sum(chunk: audio_pb2.DataChunk, field: str, message: str, **metadata: str) -> None:
    """DATA_LOSS with ``message`` if the bytes of a chunk are not those that its checksum, if it has one, is of."""
    if chunk.HasField("crc32c") and google_crc32c.value(chunk.data) != chunk.crc32c:
        raise ApiError(
            grpc.StatusCode.DATA_LOSS,
            "CHUNK_CHECKSUM_MISMATCH",
            message,
            metadata=metadata,
            fields=[(f"{field}.crc32c", "does not fit the data")],
        )


@dataclass(frozen=True, slots=True)
class Received:
    """A file that has arrived."""

    path: Path
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Expected:
    """A file that may arrive.

    ``what`` it is, as in "the clip"; ``too_large`` makes, of the field at fault, the refusal of one that has more than
    ``limit`` bytes; ``field`` is the path of its chunks in the requests.
    """

    what: str
    limit: int
    too_large: Callable[[str], ApiError]
    field: str = "chunk"


class Arriving:
    """A file that is arriving in chunks. Its methods block."""

    def __init__(self, path: Path, file: BinaryIO, expected: Expected) -> None:
        self.size = 0
        self._path = path
        self._file = file
        self._expected = expected
        self._digest = hashlib.sha256()

    def write(self, chunk: audio_pb2.DataChunk) -> None:
        """Append a chunk of a stream; ApiError if it is too much, does not follow, or was damaged."""
        what, field = self._expected.what, self._expected.field
        if chunk.offset + len(chunk.data) > self._expected.limit:
            raise self._expected.too_large(f"{field}.data")
        if chunk.offset != self.size:
            message = f"offset {chunk.offset} of {what} does not follow: {self.size} is next"
            raise invalid("OFFSET_MISMATCH", message, f"{field}.offset", expected_offset=str(self.size))
        check_sum(
            chunk, field, f"the chunk at offset {chunk.offset} of {what} was damaged on its way; send {what} again"
        )
        self.append(chunk.data, f"{field}.data")

    def append(self, data: bytes, field: str) -> None:
        """Append bytes; if they are too many, blame ``field``."""
        if self.size + len(data) > self._expected.limit:
            raise self._expected.too_large(field)
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def finish(self) -> Received:
        """The whole file."""
        self._file.close()
        return Received(self._path, self.size, self._digest.hexdigest())


async def receive(requests: AsyncIterator[Any], path: Path, expected: Expected) -> Received:
    """The file that a ``paced`` stream sends after its specification, in chunks, until it says how many bytes it sent.

    Args:
        requests: Messages with a oneof ``payload`` of "spec", "chunk" and "end", which has ``size_bytes``.
        path: Where to put it.
        expected: What it may be.

    Raises:
        ApiError: UNEXPECTED_SPEC, SIZE_MISMATCH, END_MISSING, and what :meth:`Arriving.write` raises.
    """
    with path.open("wb") as file:
        arriving = Arriving(path, file, expected)
        async for request in requests:
            match request.WhichOneof("payload"):
                case "chunk":
                    await asyncio.to_thread(arriving.write, request.chunk)
                case "end":
                    if request.end.size_bytes != arriving.size:
                        message = f"{arriving.size} bytes came, {request.end.size_bytes} were sent"
                        raise invalid("SIZE_MISMATCH", message, "end.size_bytes")
                    return arriving.finish()
                case _:
                    raise invalid("UNEXPECTED_SPEC", "the specification comes once, first", "spec")
    raise invalid("END_MISSING", f"the stream ended before the end of {expected.what} was said", "end")
