"""Results of jobs as streams of bytes: of the stored file, or of the pieces of one that is being made."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
from contrafact.v1 import audio_pb2

from servers.orchestrator.api.resources import chunk
from servers.orchestrator.jobs.store import JobStore
from servers.platform.errors import ApiError
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
