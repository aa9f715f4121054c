"""Layers: stems as they are played with a style, stored by what they are made of.

A layer is FLAC, in steps of 24 bits, with room for 24 dB above full scale. What goes into a mix is always a layer as
it is stored: so it makes no difference to a mix which of its layers were there before.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from uuid import UUID, uuid5

import asyncpg
import numpy as np
from contrafact.v1 import grain_pb2
from google.protobuf import json_format

from servers.grains.rendering import RENDER_VERSION
from servers.grains.trace import TRACE_VERSION
from servers.media.blocks import Block
from servers.media.decode import decode
from servers.media.encode import AudioFormat
from servers.orchestrator.jobs.runner import JobFailure, JobRun
from servers.orchestrator.jobs.store import LeaseLost
from servers.orchestrator.pipelines.growing import GrowingFile, as_stored
from servers.platform import telemetry
from servers.platform.tasks import to_the_end
from servers.storage import keys
from servers.storage.database import Connection, Pool, Row, exclusive
from servers.storage.objects import ObjectMissing, ObjectStore

FORMAT = AudioFormat.FLAC
_NAMESPACE = UUID("5b0f6f0a-9d0d-4a6e-8f6b-6d7f1f3f2c58")
_ROOM = np.float32(16)  # 24 dB
_USED_ANEW = dt.timedelta(hours=12)  # how exactly the last use is known


def layer_id(stem: Row, library: Row, settings: grain_pb2.GrainSettings, channels: int) -> UUID:
    """The id of what complete ``settings`` make of a stem and a grain library."""
    parts = [
        stem["sha256"],
        stem["model"],
        stem["stem"],
        stem["content_sha256"],
        stem["sample_rate"],
        channels,
        library["content_sha256"],
        json_format.MessageToDict(settings),
        TRACE_VERSION,
        RENDER_VERSION,
    ]
    return uuid5(_NAMESPACE, json.dumps(parts, sort_keys=True))


def lowered(block: Block) -> Block:
    """What is written of a layer."""
    return Block(block.samples / _ROOM, block.sample_rate, block.start)


def raised(block: Block) -> Block:
    """What is heard of what was written of a layer, and not yet encoded."""
    return Block(as_stored(block.samples) * _ROOM, block.sample_rate, block.start)


async def decoded(path: Path) -> AsyncGenerator[Block, None]:
    """What is heard of a stored layer."""
    async with aclosing(decode(path)) as blocks:
        async for block in blocks:
            yield Block(block.samples * _ROOM, block.sample_rate, block.start)


class Layers:
    """The layers of all recordings."""

    def __init__(self, pool: Pool, objects: ObjectStore) -> None:
        self._pool = pool
        self._objects = objects

    async def find(self, identity: UUID) -> Row | None:
        """A stored layer, which is thereby used."""
        row = await self._pool.fetchrow("SELECT * FROM layers WHERE id = $1", identity)
        if row is not None and dt.datetime.now(dt.UTC) - row["used_at"] > _USED_ANEW:
            await self._pool.execute("UPDATE layers SET used_at = now() WHERE id = $1", identity)
        return row

    async def fetch(self, row: Row, path: Path) -> bool:
        """Fetch a stored layer; False: its bytes are gone, or others. It is forgotten then, and can be made again."""
        try:
            await self._objects.fetch(row["object_key"], path)
        except ObjectMissing:
            digest = ""
        else:
            digest = await asyncio.to_thread(_digest, path)
        if digest == row["content_sha256"]:
            return True
        telemetry.log().warning("a stored layer is gone or damaged", key=row["object_key"])
        await self._pool.execute("DELETE FROM layers WHERE id = $1 AND object_key = $2", row["id"], row["object_key"])
        return False

    async def publish(self, run: JobRun, identity: UUID, sha256: str, file: GrowingFile) -> Row:
        """Put a finished layer of a recording in its place, unless another job put it there before."""
        async with exclusive(self._pool, str(identity)) as connection:
            row = await connection.fetchrow("SELECT * FROM layers WHERE id = $1", identity)
            if row is None:
                # To the end: otherwise an object may be left that nobody knows.
                row = await to_the_end(self._put(connection, run, identity, sha256, file))
        return row

    async def _put(self, connection: Connection, run: JobRun, identity: UUID, sha256: str, file: GrowingFile) -> Row:
        place = keys.layer(identity, file.sha256, file.format.extension)
        await file.put(place)
        try:
            async with connection.transaction():
                await run.store.hold(connection, run.id, run.attempt)
                row = await connection.fetchrow(
                    """INSERT INTO layers (id, sha256, object_key, size_bytes, content_sha256)
                       VALUES ($1, $2, $3, $4, $5) RETURNING *""",
                    identity,
                    sha256,
                    place,
                    file.size,
                    file.sha256,
                )
        except (LeaseLost, asyncpg.ForeignKeyViolationError) as error:
            await self._objects.delete([place])  # nobody will ever ask for it
            if isinstance(error, LeaseLost):
                raise
            raise JobFailure("TRACK_DELETED", "the track was deleted") from error
        assert row is not None
        return row


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
