"""Traces: what is played in stems, as far as it is known."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator

import asyncpg
from contrafact.engine.v1 import grains_pb2

from servers.grains.trace import TRACE_VERSION
from servers.orchestrator.jobs.runner import JobFailure
from servers.orchestrator.pipelines.growing import Shape
from servers.storage.database import Pool, Row

_BATCH = 4096  # notes


class TraceWriter:
    """Compresses the notes of a stem as they come: a message's parts, one after the other, are the message."""

    def __init__(self, stem: Shape) -> None:
        self._compressor = zlib.compressobj()
        self._parts: list[bytes] = []
        self._add(grains_pb2.Trace(version=TRACE_VERSION, sample_rate=stem.sample_rate, frames=stem.frames))

    def add(self, batch: grains_pb2.NoteBatch) -> None:
        """Add the next notes."""
        self._add(grains_pb2.Trace(notes=batch.notes))

    def _add(self, part: grains_pb2.Trace) -> None:
        self._parts.append(self._compressor.compress(part.SerializeToString()))

    def finish(self) -> bytes:
        """The whole trace."""
        return b"".join([*self._parts, self._compressor.flush()])


class Traces:
    """The traces of all stems; rows of ``stems`` say which."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def read(self, stem: Row) -> grains_pb2.Trace | None:
        """The trace of a stem, if it is stored, of these very bytes, and of our version."""
        data = await self._pool.fetchval(
            """SELECT notes FROM traces
               WHERE sha256 = $1 AND model = $2 AND stem = $3 AND content_sha256 = $4 AND version = $5""",
            stem["sha256"],
            stem["model"],
            stem["stem"],
            stem["content_sha256"],
            TRACE_VERSION,
        )
        if data is None:
            return None
        return await asyncio.to_thread(lambda: grains_pb2.Trace.FromString(zlib.decompress(data)))

    async def save(self, stem: Row, data: bytes) -> None:
        """Store what a ``TraceWriter`` has written of a stem, unless a newer version's is there."""
        try:
            await self._pool.execute(
                """INSERT INTO traces AS known (sha256, model, stem, content_sha256, version, notes)
                   VALUES ($1, $2, $3, $4, $5, $6)
                   ON CONFLICT (sha256, model, stem) DO UPDATE
                   SET content_sha256 = excluded.content_sha256, version = excluded.version, notes = excluded.notes,
                       created_at = now() WHERE known.version <= excluded.version""",
                stem["sha256"],
                stem["model"],
                stem["stem"],
                stem["content_sha256"],
                TRACE_VERSION,
                data,
            )
        except asyncpg.ForeignKeyViolationError as error:
            raise JobFailure("TRACK_DELETED", "the track was deleted") from error


async def batches(trace: grains_pb2.Trace) -> AsyncGenerator[grains_pb2.NoteBatch, None]:
    """A stored trace as the engine gives it."""
    for first in range(0, len(trace.notes), _BATCH):
        notes = trace.notes[first : first + _BATCH]
        rest = first + _BATCH < len(trace.notes)
        until = trace.notes[first + _BATCH].start if rest else trace.frames
        yield grains_pb2.NoteBatch(notes=notes, until=until)
    if not trace.notes:
        yield grains_pb2.NoteBatch(until=trace.frames)
