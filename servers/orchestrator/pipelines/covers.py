"""Stored covers: named by what they are made of, found, put in their place, announced."""

from __future__ import annotations

import json
from uuid import UUID, uuid5

from contrafact.engine.v1 import mixer_pb2
from contrafact.v1 import job_pb2
from google.protobuf import json_format

from servers.inference.models import VOICE_MODELS, versioned
from servers.orchestrator.jobs import messages
from servers.orchestrator.jobs.runner import JobFailure, JobRun
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
        versioned(spec.model),
        *(f"{model}-{version}" for model, version in VOICE_MODELS.items()),
        str(voice["id"]),
        voice["weights_sha256"],
        voice["index_sha256"],
        json_format.MessageToDict(spec.conversion),
        voice["pitch_median"] if spec.conversion.auto_octave else None,
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
        place = keys.cover(identity, file.sha256, file.format.extension)
        async with exclusive(self._pool, str(identity)) as connection:
            row = await self._assign(connection, run, identity)
            if row is None:
                # Bytes without a row, which a crash or a cancellation leaves, are found by the clean-ups.
                await file.put(place)
                async with connection.transaction():
                    await _keep_alive(connection, run)
                    await run.store.hold(connection, run.id, run.attempt)
                    await self._insert(connection, run, identity, place, recording, file, semitones, report)
                    row = await self._assign(connection, run, identity)
        assert row is not None
        await self._announce(run, row)

    async def _insert(
        self,
        connection: Connection,
        run: JobRun,
        identity: UUID,
        place: str,
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
            place,
            file.size,
            file.sha256,
            file.encoder.output_rate,
            channels(recording),
            file.encoder.output_frames,
            file.peak,
            file.clipped,
            report.integrated_lufs if report.HasField("integrated_lufs") else None,
            report.true_peak_db if report.HasField("true_peak_db") else None,
        )

    async def _assign(self, database: Pool | Connection, run: JobRun, identity: UUID) -> Row | None:
        # Tracks may be deleted and come again: what was made of the same bytes is then theirs.
        return await database.fetchrow(
            """WITH found AS (
                   UPDATE covers SET spec = CASE WHEN track_id IS NULL THEN $3::jsonb ELSE spec END,
                                     track_id = coalesce(track_id, $4)
                   WHERE id = $2 RETURNING *
               ), assigned AS (
                   INSERT INTO job_covers (job_id, cover_id) SELECT $1, id FROM found
                   WHERE EXISTS (SELECT 1 FROM jobs WHERE id = $1 AND attempt = $5 AND state = 'RUNNING')
                   ON CONFLICT DO NOTHING
               )
               SELECT * FROM found""",
            run.id,
            identity,
            run.row["spec"],
            run.row["track_id"],
            run.attempt,
        )

    async def _announce(self, run: JobRun, row: Row) -> None:
        warn_of_clipping(run, "cover", row)
        await run.events.publish([run.id], job_pb2.JobEvent(artifact=messages.artifact(row, "")))


async def _keep_alive(connection: Connection, run: JobRun) -> None:
    """Within a transaction: keep track and voice from being deleted before its end; JobFailure if they are gone.

    They are locked before the job is, in the order in which deletions lock them.
    """
    for table, row_id, reason in (
        ("tracks", run.row["track_id"], "TRACK_DELETED"),
        ("voices", run.row["voice_id"], "VOICE_DELETED"),
    ):
        if await connection.fetchval(f"SELECT 1 FROM {table} WHERE id = $1 FOR KEY SHARE", row_id) is None:
            raise JobFailure(reason, f"the {table.removesuffix('s')} was deleted")
