"""Stored stems: found, made the job's, put in their place, announced."""

from __future__ import annotations

import asyncpg
import numpy as np
from contrafact.v1 import job_pb2

from servers.media.encode import AudioFormat
from servers.orchestrator.jobs import messages
from servers.orchestrator.jobs.retention import stem_used
from servers.orchestrator.jobs.runner import JobRun
from servers.orchestrator.jobs.store import LeaseLost
from servers.orchestrator.pipelines.growing import GrowingFile
from servers.orchestrator.pipelines.recordings import channels
from servers.platform.tasks import together
from servers.storage import keys
from servers.storage.database import Connection, Pool, Row, exclusive
from servers.storage.objects import ObjectStore


class Stems:
    """The stems of recordings; ``model`` carries its version, as in ``htdemucs-1``."""

    def __init__(self, pool: Pool, objects: ObjectStore) -> None:
        self._pool = pool
        self._objects = objects

    async def exact(self, sha256: str, model: str, stem: str) -> Row | None:
        """A stored stem that lost nothing when it was encoded, in whichever format."""
        row = await self._pool.fetchrow(
            """SELECT * FROM stems WHERE sha256 = $1 AND model = $2 AND stem = $3
                 AND (format = 'wav' OR format = 'flac' AND clipped = 0) ORDER BY format LIMIT 1""",
            sha256,
            model,
            stem,
        )
        if row is not None:
            await stem_used(self._pool, row)
        return row

    async def take(self, run: JobRun, sha256: str, model: str, stem: str, audio_format: AudioFormat) -> Row | None:
        """Make a stored stem one of the job's; None: it is not stored."""
        row = await self._assign(self._pool, run, sha256, model, stem, audio_format)
        if row is not None:
            await stem_used(self._pool, row)
            await self._announce(run, row)
        return row

    async def publish(self, run: JobRun, recording: Row, model: str, stems: list[GrowingFile]) -> None:
        """Put finished stems in their place, except those that a newer attempt or another job put there before."""
        sha256 = recording["sha256"]
        # Against such another, and against the deletion of the track.
        async with exclusive(self._pool, sha256) as connection:
            known = {
                (row["stem"], row["format"])
                for row in await connection.fetch("SELECT * FROM stems WHERE sha256 = $1 AND model = $2", sha256, model)
            }
            new = [stem for stem in stems if (stem.name, stem.format.value) not in known]
            places = {
                stem.name: keys.stem(sha256, model, stem.name, stem.sha256, stem.format.extension) for stem in new
            }
            await together(*(stem.put(places[stem.name]) for stem in new))
            try:
                async with connection.transaction():
                    await run.store.hold(connection, run.id, run.attempt)
                    for stem in new:
                        await self._insert(connection, recording, model, stem, places[stem.name])
                    rows = [
                        await self._assign(connection, run, sha256, model, stem.name, stem.format) for stem in stems
                    ]
            except (LeaseLost, asyncpg.ForeignKeyViolationError):  # nobody will ever ask for what was put
                await self._objects.delete(list(places.values()))
                raise
        for row in rows:
            assert row is not None
            await self._announce(run, row)

    async def _insert(self, connection: Connection, recording: Row, model: str, stem: GrowingFile, place: str) -> None:
        await connection.execute(
            """INSERT INTO stems (sha256, model, stem, format, object_key, size_bytes, content_sha256,
                                  sample_rate, channels, frames, peak, clipped)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)""",
            recording["sha256"],
            model,
            stem.name,
            stem.format.value,
            place,
            stem.size,
            stem.sha256,
            stem.encoder.output_rate,
            channels(recording),
            stem.encoder.output_frames,
            stem.peak,
            stem.clipped,
        )

    async def _assign(
        self, database: Pool | Connection, run: JobRun, sha256: str, model: str, stem: str, audio_format: AudioFormat
    ) -> Row | None:
        return await database.fetchrow(
            """WITH found AS (
                   SELECT * FROM stems WHERE sha256 = $2 AND model = $3 AND stem = $4 AND format = $5
               ), assigned AS (
                   INSERT INTO job_stems (job_id, sha256, model, stem, format)
                   SELECT $1, sha256, model, stem, format FROM found
                   WHERE EXISTS (SELECT 1 FROM jobs WHERE id = $1 AND attempt = $6 AND state = 'RUNNING')
                   ON CONFLICT DO NOTHING
               )
               SELECT * FROM found""",
            run.id,
            sha256,
            model,
            stem,
            audio_format.value,
            run.attempt,
        )

    async def _announce(self, run: JobRun, row: Row) -> None:
        warn_of_clipping(run, row["stem"], row)
        artifact = messages.artifact(row, f"tracks/{run.row['track_id']}")
        # Not to followers: the track of another owner is named otherwise. They take it when it is their turn.
        await run.events.publish([run.id], job_pb2.JobEvent(artifact=artifact))


def warn_of_clipping(run: JobRun, what: str, row: Row) -> None:
    """Tell the caller how much of a result its format had to clip, if any."""
    if row["clipped"]:
        over = 20 * np.log10(row["peak"])
        run.warnings.append(
            f"{what}: {row['clipped']} samples above full scale (peak {over:+.2f} dBFS) "
            f"were clipped by {row['format']}; ask for wav to keep them"
        )
