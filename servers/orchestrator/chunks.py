"""Chunks of what clients send."""

from __future__ import annotations

import google_crc32c
import grpc
from contrafact.v1 import audio_pb2

from servers.platform.errors import ApiError


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
