"""Stored covers: named by what they are made of, found, put in their place, announced."""

from __future__ import annotations

import json
from uuid import UUID, uuid5

import asyncpg
from contrafact.engine.v1 import mixer_pb2
from contrafact.v1 import job_pb2
from google.protobuf import json_format

from servers.inference.models import SEPARATION_MODELS, VOICE_MODELS
from servers.orchestrator.jobs import messages
from servers.orchestrator.jobs.runner import JobRun
from servers.orchestrator.jobs.store import LeaseLost
from servers.orchestrator.pipelines.growing import GrowingFile
from servers.orchestrator.pipelines.recordings import channels
from servers.orchestrator.pipelines.stems import warn_of_clipping
from servers.storage import keys
from servers.storage.database import Connection, Pool, Row, exclusive
from servers.storage.objects import ObjectStore

_NAMESPACE = UUID("6f1f8a8e-6b55-4f0e-9f55-3d5b1a0c7c11")


def cover_id(owner: str, sha256: str, voice: Row, spec: job_pb2.CoverSpec) -> UUID:
    """The id of what ``spec``, with all defaults written down, makes of these bytes and this voice."""
    parts = [
        owner,
        sha256,
        f"{spec.model}-{SEPARATION_MODELS[spec.model]}",
        *(f"{model}-{version}" for model, version in VOICE_MODELS.items()),
        str(voice["id"]),
        voice["weights_sha256"],
        voice["index_sha256"],
        json_format.MessageToDict(spec.conversion),
        json_format.MessageToDict(spec.mix),
        messages.audio_format(spec.format),
    ]
    return uuid5(_NAMESPACE, json.dumps(parts, sort_keys=True))


class Covers:
    """The covers of all tracks."""

    def __init__(self, pool: Pool, objects: ObjectStore) -> None:
        self._pool = pool
        self._objects = objects

    async def take(self, run: JobRun, identity: UUID) -> bool:
        """Make a stored cover the job's; False: it is not stored."""
        row = await self._assign(self._pool, run, identity)
        if row is not None:
            await self._announce(run, row)
        return row is not None

    async def publish(
        self,
        run: JobRun,
        identity: UUID,
        recording: Row,
        file: GrowingFile,
        semitones: float,
        report: mixer_pb2.MixReport,
    ) -> None:
        """Put a finished cover in its place, unless a newer attempt or another job put it there before."""
        place = keys.cover(identity, file.format.extension)
        async with exclusive(self._pool, str(identity)) as connection:
            row = await self._assign(connection, run, identity)
            if row is None:
                await file.put(place)
                try:
                    async with connection.transaction():
                        await run.store.hold(connection, run.id, run.attempt)
                        await self._insert(connection, run, identity, recording, file, semitones, report)
                        row = await self._assign(connection, run, identity)
                except (LeaseLost, asyncpg.ForeignKeyViolationError):  # nobody will ever ask for what was put
                    await self._objects.delete([place])
                    raise
        assert row is not None
        await self._announce(run, row)

    async def _insert(
        self,
        connection: Connection,
        run: JobRun,
        identity: UUID,
        recording: Row,
        file: GrowingFile,
        semitones: float,
        report: mixer_pb2.MixReport,
    ) -> None:
        await connection.execute(
            """INSERT INTO covers (id, owner, track_id, voice_id, spec, semitones, format, object_key, size_bytes,
                                   content_sha256, sample_rate, channels, frames, peak, clipped, loudness, true_peak)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)""",
            identity,
            run.row["owner"],
            run.row["track_id"],
            run.row["voice_id"],
            run.row["spec"],
            semitones,
            file.format.value,
            keys.cover(identity, file.format.extension),
            file.size,
            file.sha256,
            file.encoder.output_rate,
            channels(recording),
            file.encoder.output_frames,
            file.encoder.peak,
            file.encoder.clipped,
            report.integrated_lufs if report.HasField("integrated_lufs") else None,
            report.true_peak_db if report.HasField("true_peak_db") else None,
        )

    async def _assign(self, database: Pool | Connection, run: JobRun, identity: UUID) -> Row | None:
        return await database.fetchrow(
            """WITH found AS (
                   SELECT * FROM covers WHERE id = $2
               ), assigned AS (
                   INSERT INTO job_covers (job_id, cover_id) SELECT $1, id FROM found ON CONFLICT DO NOTHING
               )
               SELECT * FROM found""",
            run.id,
            identity,
        )

    async def _announce(self, run: JobRun, row: Row) -> None:
        warn_of_clipping(run, "cover", row)
        await run.events.publish(run.id, job_pb2.JobEvent(artifact=messages.artifact(row, "")))
