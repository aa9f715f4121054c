"""The table of mixes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from uuid import UUID

from contrafact.engine.v1 import mixer_pb2
from contrafact.v1 import job_pb2, mix_pb2
from google.protobuf import json_format

from servers.orchestrator.jobs import messages
from servers.orchestrator.jobs.runner import JobFailure, JobRun
from servers.orchestrator.jobs.store import LeaseLost
from servers.orchestrator.pipelines.growing import GrowingFile
from servers.orchestrator.pipelines.stems import warn_of_clipping
from servers.platform import telemetry
from servers.platform.tasks import to_the_end
from servers.storage import keys
from servers.storage.database import Connection, Pool, Row, exclusive
from servers.storage.objects import ObjectStore
from servers.storage.outages import OUTAGES

_MIXES = """SELECT m.*, j.state AS job_state, j.error AS job_error
            FROM mixes m LEFT JOIN jobs j ON j.id = m.latest_job"""
_STATES = {"QUEUED": mix_pb2.MIX_STATE_QUEUED, "RUNNING": mix_pb2.MIX_STATE_PROCESSING}


def mix(row: Row) -> mix_pb2.Mix:
    """A row of ``MixStore`` as a message."""
    message = mix_pb2.Mix(
        name=f"mixes/{row['id']}",
        display_name=row["display_name"],
        project=f"projects/{row['project_id']}",
        config=json_format.ParseDict(row["config"], job_pb2.MixConfig()),
        revision=row["revision"],
        job=f"jobs/{row['latest_job']}" if row["job_state"] else "",
        create_time=messages.timestamp(row["created_at"]),
        update_time=messages.timestamp(row["updated_at"]),
    )
    if row["rendered_revision"] is not None:
        message.artifact.CopyFrom(messages.artifact(row, ""))
        message.artifact_revision = row["rendered_revision"]
        json_format.ParseDict(row["report"], message.report)
    if row["rendered_revision"] == row["revision"]:
        message.state = mix_pb2.MIX_STATE_COMPLETE
    elif row["job_state"] in _STATES:
        message.state = _STATES[row["job_state"]]
    else:
        message.state = mix_pb2.MIX_STATE_ERROR
        message.error.CopyFrom(_trouble(row))
    return message


def _trouble(row: Row) -> job_pb2.JobError:
    """Why a mix is not rendered as it is configured, nor will be."""
    if row["job_error"]:
        return json_format.ParseDict(row["job_error"], job_pb2.JobError())
    if row["job_state"] == "CANCELLED":
        return job_pb2.JobError(reason="CANCELLED", message="its job was cancelled", retryable=True)
    return job_pb2.JobError(reason="OBJECT_MISSING", message="what was rendered is gone", retryable=True)


async def remove_objects(pool: Pool, objects: ObjectStore, mix_ids: Iterable[UUID]) -> None:
    """Remove the bytes of mixes whose rows are gone. What an outage leaves is found by the clean-ups."""
    try:
        for mix_id in mix_ids:
            async with exclusive(pool, str(mix_id)):  # against who publishes one at this moment
                await objects.delete_prefix(keys.mixes_prefix(mix_id))
    except OUTAGES as error:
        telemetry.log().warning("mixes not removed yet", error=type(error).__name__)


class MixStore:
    """Reads mixes, with the columns that ``mix`` needs, and puts renderings in their place."""

    def __init__(self, pool: Pool, objects: ObjectStore) -> None:
        self._pool = pool
        self._objects = objects

    async def find(self, mix_id: UUID, owner: str) -> Row | None:
        """A mix, if there is that one and it belongs to ``owner``."""
        return await self._pool.fetchrow(f"{_MIXES} WHERE m.id = $1 AND m.owner = $2", mix_id, owner)

    async def of_request(self, request_id: UUID, owner: str) -> Row | None:
        """The mix that a request of ``owner`` created, if any."""
        return await self._pool.fetchrow(f"{_MIXES} WHERE m.request_id = $1 AND m.owner = $2", request_id, owner)

    async def page(
        self, owner: str, limit: int, before: tuple[dt.datetime, UUID] | None, project_id: UUID | None
    ) -> list[Row]:
        """Mixes of ``owner``, newest first, those created before the position ``before``."""
        created_at, mix_id = before or (None, None)
        return await self._pool.fetch(
            f"""{_MIXES} WHERE m.owner = $1 AND ($2::timestamptz IS NULL OR (m.created_at, m.id) < ($2, $3::uuid))
                AND ($4::uuid IS NULL OR m.project_id = $4)
                ORDER BY m.created_at DESC, m.id DESC LIMIT $5""",
            owner,
            created_at,
            mix_id,
            project_id,
            limit,
        )

    async def of_job(self, spec: job_pb2.MixSpec) -> Row:
        """The mix that a job is to render, with the ``model`` of its project; JobFailure: that is not wanted any more.

        MIX_DELETED, or MIX_CHANGED: it has another revision by now.
        """
        row = await self._pool.fetchrow(
            "SELECT m.*, p.model FROM mixes m JOIN projects p ON p.id = m.project_id WHERE m.id = $1", _id(spec)
        )
        return _wanted(row, spec)

    async def publish(
        self,
        run: JobRun,
        spec: job_pb2.MixSpec,
        file: GrowingFile,
        heard: mixer_pb2.MixReport,
        report: mix_pb2.MixReport,
    ) -> None:
        """Put a rendering in its place and remove the one before, unless the mix was changed or deleted meanwhile.

        Args:
            run: The job.
            spec: What it has rendered.
            file: The rendering.
            heard: What the mixer measured.
            report: What it took.
        """
        async with exclusive(self._pool, str(_id(spec))) as connection:
            # To the end: otherwise an object may be left that nobody knows.
            row = await to_the_end(self._put(connection, run, spec, file, heard, report))
        warn_of_clipping(run, "mix", row)
        await run.publish(job_pb2.JobEvent(artifact=messages.artifact(row, "")))

    async def _put(
        self,
        connection: Connection,
        run: JobRun,
        spec: job_pb2.MixSpec,
        file: GrowingFile,
        heard: mixer_pb2.MixReport,
        report: mix_pb2.MixReport,
    ) -> Row:
        place = keys.mix(_id(spec), file.sha256, file.format.extension)
        await file.put(place)
        former: str | None = None
        try:
            async with connection.transaction():
                # Before the job, as who changes a mix does.
                row = await connection.fetchrow("SELECT * FROM mixes WHERE id = $1 FOR UPDATE", _id(spec))
                former = row["object_key"] if row is not None else None
                _wanted(row, spec)
                await run.store.hold(connection, run.id, run.attempt)
                row = await _rendered(connection, run, spec, file, place, heard, report)
        except (LeaseLost, JobFailure):
            if former != place:  # nobody will ever ask for what was put
                await self._objects.delete([place])
            raise
        if former not in (None, place):
            await self._objects.delete([former])
        assert row is not None
        return row


def _id(spec: job_pb2.MixSpec) -> UUID:
    return UUID(spec.mix.removeprefix("mixes/"))


def _wanted(row: Row | None, spec: job_pb2.MixSpec) -> Row:
    if row is None:
        raise JobFailure("MIX_DELETED", "the mix was deleted")
    if row["revision"] != spec.revision:
        raise JobFailure("MIX_CHANGED", "the mix was changed since")
    return row


async def _rendered(
    connection: Connection,
    run: JobRun,
    spec: job_pb2.MixSpec,
    file: GrowingFile,
    place: str,
    heard: mixer_pb2.MixReport,
    report: mix_pb2.MixReport,
) -> Row | None:
    return await connection.fetchrow(
        """UPDATE mixes SET rendered_revision = $2, rendered_job = $3, report = $4, format = $5, object_key = $6,
                            size_bytes = $7, content_sha256 = $8, sample_rate = $9, channels = $10, frames = $11,
                            peak = $12, clipped = $13, loudness = $14, true_peak = $15, rendered_at = now()
           WHERE id = $1 RETURNING *""",
        _id(spec),
        spec.revision,
        run.id,
        json_format.MessageToDict(report, preserving_proto_field_name=True),
        file.format.value,
        place,
        file.size,
        file.sha256,
        file.encoder.output_rate,
        spec.config.channels,
        file.encoder.output_frames,
        file.peak,
        file.clipped,
        heard.integrated_lufs if heard.HasField("integrated_lufs") else None,
        heard.true_peak_db if heard.HasField("true_peak_db") else None,
    )
