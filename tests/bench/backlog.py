"""Jobs that wait, many at a time."""

from __future__ import annotations

import hashlib
from uuid import UUID, uuid4

from servers.orchestrator.jobs.store import NewJob
from servers.storage.database import Pool

KIND = "SEPARATE"
SPEC = {"track": f"tracks/{UUID(int=0)}", "stems": [], "format": "AUDIO_FORMAT_FLAC", "model": "htdemucs"}


async def track(pool: Pool) -> UUID:
    """A track of four minutes that all jobs are about; its bytes do not exist."""
    digest, track_id = hashlib.sha256(b"").hexdigest(), uuid4()
    await pool.execute(
        """INSERT INTO recordings (sha256, size_bytes, object_key, container, codec, sample_rate, channels, frames,
                                   mean, std, peak)
           VALUES ($1, 1, 'none', 'flac', 'flac', 44100, 2, 10584000, 0, 1, 1) ON CONFLICT DO NOTHING""",
        digest,
    )
    await pool.execute("INSERT INTO tracks VALUES ($1, 'bench', 'bench', $2)", track_id, digest)
    return track_id


def new(track_id: UUID, owner: str = "bench", *, priority: str = "INTERACTIVE", lock: str | None = None) -> NewJob:
    """A job as the API would create it; no other has its lock unless one is given."""
    lock = lock or f"separate:{uuid4()}"
    return NewJob(owner, uuid4(), KIND, priority, SPEC, track_id, {"x-request-id": str(uuid4())}, lock=lock)


async def fill(pool: Pool, track_id: UUID, count: int, *, owners: int = 1, lock: str | None = None) -> None:
    """Have so many background jobs wait, of so many owners, all with one lock if one is given."""
    await pool.execute(
        """INSERT INTO jobs (id, owner, request_id, kind, priority, track_id, spec, headers, lock, turn)
           SELECT gen_random_uuid(), 'owner-' || number % $3, gen_random_uuid(), $4, 'BACKGROUND', $1, $5, $6,
                  coalesce($7, 'separate:' || gen_random_uuid()), number / $3
           FROM generate_series(0, $2 - 1) AS number""",
        track_id,
        count,
        owners,
        KIND,
        SPEC,
        {"x-request-id": str(UUID(int=0))},
        lock,
        timeout=300,
    )
    await pool.execute("VACUUM ANALYZE jobs", timeout=300)  # as autovacuum would within a minute


async def clear(pool: Pool) -> None:
    """Forget all jobs."""
    await pool.execute("TRUNCATE jobs CASCADE")
