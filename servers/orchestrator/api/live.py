"""Results of jobs as streams of bytes: of the stored file, or of the pieces of one that is being made."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from uuid import UUID

import grpc
from contrafact.v1 import audio_pb2

from servers.orchestrator.api.jobs import find_job
from servers.orchestrator.api.resources import chunk
from servers.orchestrator.jobs.hub import EventHub
from servers.orchestrator.jobs.store import FINAL_STATES, JobStore
from servers.platform.errors import ApiError, invalid
from servers.storage import keys
from servers.storage.database import Pool, Row
from servers.storage.objects import ObjectMissing, ObjectStore

# How long a listener believes that silence of a job's events means that there is nothing new.
SILENCE_SECONDS = 2.0
_PIECES = 4  # a few at a time, so that results of one job take turns


async def maker(store: JobStore, job: Row) -> Row:
    """The job whose live pieces are those of ``job``: another that does the same work meanwhile, or itself."""
    return await store.leader(job) or job


async def read_growing(
    pool: Pool, objects: ObjectStore, job: Row, result: str, offset: int
) -> AsyncIterator[tuple[audio_pb2.DataChunk, int]]:
    """What there is of a result that is being made, from ``offset`` on, but only a few pieces of it.

    Yields:
        The bytes, with the number of frames that can be decoded with all bytes up to there; 0 when that is unknown.
    """
    pieces = await pool.fetch(
        """SELECT * FROM live_pieces WHERE job_id = $1 AND attempt = $2 AND stem = $3 AND start + size_bytes > $4
           ORDER BY start LIMIT $5""",
        job["id"],
        job["attempt"],
        result,
        offset,
        _PIECES,
    )
    for piece in pieces:
        key = keys.live_piece(job["id"], job["attempt"], result, piece["start"])
        try:
            async for data in objects.read(key, offset - piece["start"]):
                part = chunk(offset, data)
                offset += len(data)
                yield part, piece["frames_ready"] if offset == piece["start"] + piece["size_bytes"] else 0
        except ObjectMissing:
            return  # the result was finished or the attempt given up meanwhile: the next look-up tells


def ended_without(job: Row, what: str) -> ApiError:
    """FAILED_PRECONDITION: the job has ended, and ``what`` will never come."""
    reason = (job["error"] or {}).get("reason", job["state"])
    return ApiError(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"JOB_{job['state']}",
        f"the job ended without {what}: {reason}",
        metadata={"job_reason": reason},
    )


class Live:
    """Follows jobs that make one result each, a cover or a mix."""

    def __init__(self, pool: Pool, objects: ObjectStore, store: JobStore, hub: EventHub) -> None:
        self._pool = pool
        self._objects = objects
        self._store = store
        self._hub = hub

    async def follow(
        self,
        name: str,
        kind: str,
        offset: int,
        stored: Callable[[Sequence[UUID]], Awaitable[list[Row]]],
        read: Callable[[Row, int], AsyncIterator[audio_pb2.DataChunk]],
        gone: Callable[[Row], Awaitable[ApiError]],
    ) -> AsyncGenerator[tuple[audio_pb2.DataChunk | Row, int], None]:
        """The bytes of a result, while it is made or after; last its row.

        Args:
            name: Of the job, as the caller has it.
            kind: What it must do, as "COVER".
            offset: First byte wanted.
            stored: Finds the stored results of jobs.
            read: Reads a stored result.
            gone: Why a job that has succeeded has none.

        Yields:
            Chunks, and the row, each with the number of frames that can be decoded with all bytes up to there; 0 when
            that is unknown.

        Raises:
            ApiError: NOT_FOUND, INVALID_ARGUMENT; or the job ended without a result.
        """
        job, result = await find_job(self._store, name), kind.lower()
        if job["kind"] != kind:
            raise invalid(f"NOT_A_{kind}", f"the job does not make a {result}", "job")
        async with self._hub.listen(job["id"]) as listener:
            while True:
                # In this order: a result that is stored between the two look-ups is found by the next round.
                job = await find_job(self._store, name)
                for row in await stored([job["id"]]):
                    async for part in read(row, offset):
                        yield part, 0
                    yield row, row["frames"]
                    return
                said_anything = False
                source = await maker(self._store, job)
                async for part, ready in read_growing(self._pool, self._objects, source, result, offset):
                    said_anything = True
                    offset += len(part.data)
                    yield part, ready
                if job["state"] == "SUCCEEDED":
                    raise await gone(job)
                if job["state"] in FINAL_STATES:
                    raise ended_without(job, f"the {result}")
                if not said_anything:
                    await listener.wait(SILENCE_SECONDS)
