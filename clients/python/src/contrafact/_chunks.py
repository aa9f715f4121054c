"""Chunks of bytes on the wire: made, checked and put in order."""

from __future__ import annotations

from collections.abc import Iterator

import google_crc32c

from contrafact._errors import DataLoss
from contrafact._source import Source
from contrafact.v1.audio_pb2 import DataChunk

CHUNK_BYTES = 512 << 10


def make_chunk(offset: int, data: bytes) -> DataChunk:
    """Return a chunk with its checksum; ``offset`` is the position of its first byte."""
    return DataChunk(offset=offset, data=data, crc32c=google_crc32c.value(data))


def source_chunks(source: Source, offset: int = 0) -> Iterator[DataChunk]:
    """Yield the bytes of a source from ``offset`` to its end."""
    while data := source.read(offset, CHUNK_BYTES):
        yield make_chunk(offset, data)
        offset += len(data)


def new_bytes(chunk: DataChunk, position: int) -> bytes:
    """Return the bytes of a chunk from ``position`` on; none when they were all received before.

    Raises:
        DataLoss: the chunk does not match its checksum, or bytes between ``position`` and it are missing.
    """
    if chunk.HasField("crc32c") and google_crc32c.value(chunk.data) != chunk.crc32c:
        raise DataLoss(f"the chunk at byte {chunk.offset} arrived damaged", reason="CHUNK_CORRUPT")
    if chunk.offset > position:
        raise DataLoss(f"bytes {position} to {chunk.offset} did not arrive", reason="CHUNK_MISSING")
    return chunk.data[position - chunk.offset :] if chunk.offset < position else chunk.data
