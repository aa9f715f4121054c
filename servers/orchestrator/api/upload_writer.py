"""The writing end of an upload: bytes of one stream become committed pieces."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import grpc

from servers.platform.errors import ApiError, not_found
from servers.platform.settings import MIB
from servers.storage import keys
from servers.storage.database import Pool
from servers.storage.objects import ObjectStore

PIECE_BYTES = 8 * MIB


class UploadWriter:
    """The one stream that may go on with an upload."""

    def __init__(
        self,
        pool: Pool,
        objects: ObjectStore,
        flushes: asyncio.Semaphore,
        upload_id: UUID,
        token: UUID,
        committed: int,
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._flushes = flushes
        self._upload_id = upload_id
        self._token = token
        self._committed = committed
        self._buffer = bytearray()

    @classmethod
    async def open(cls, pool: Pool, objects: ObjectStore, flushes: asyncio.Semaphore, upload_id: UUID) -> UploadWriter:
        """Take the upload over from whatever stream had it."""
        token = uuid4()
        committed = await pool.fetchval(
            "UPDATE uploads SET writer = $2 WHERE id = $1 RETURNING committed_bytes", upload_id, token
        )
        if committed is None:
            raise not_found("upload", str(upload_id))
        return cls(pool, objects, flushes, upload_id, token, committed)

    @property
    def position(self) -> int:
        """Offset of the next byte."""
        return self._committed + len(self._buffer)

    async def write(self, data: bytes) -> None:
        """Take ``data`` in, and store a piece when there is enough for one."""
        self._buffer += data
        if len(self._buffer) >= PIECE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Store and commit what is held in memory."""
        if not self._buffer:
            return
        data, self._buffer = bytes(self._buffer), bytearray()
        async with self._flushes, self._pool.acquire() as connection, connection.transaction():
            # First, and held until the piece is stored: who has lost the upload must not touch its objects.
            ours = await connection.fetchval(
                """UPDATE uploads SET committed_bytes = committed_bytes + $4, updated_at = now()
                   WHERE id = $1 AND writer = $2 AND committed_bytes = $3 RETURNING 1""",
                self._upload_id,
                self._token,
                self._committed,
                len(data),
            )
            if ours is None:
                raise ApiError(grpc.StatusCode.ABORTED, "UPLOAD_TAKEN_OVER", "another stream goes on with this upload")
            await self._objects.put(keys.upload_piece(self._upload_id, self._committed), data)
            await connection.execute(
                "INSERT INTO upload_pieces (upload_id, start, size_bytes) VALUES ($1, $2, $3)",
                self._upload_id,
                self._committed,
                len(data),
            )
        self._committed += len(data)
