"""Marks of tracks, and the stems that are kept ready for them."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import uuid4

import grpc
from contrafact.v1 import audio_pb2, job_pb2, track_pb2

from servers.inference.models import versioned
from servers.media.encode import AudioFormat
from servers.orchestrator.api.creation import JobCreator, Subject
from servers.orchestrator.api.resources import find_track, marked_stems
from servers.orchestrator.jobs import locks, messages
from servers.platform.errors import ApiError, not_found
from servers.platform.settings import Settings
from servers.storage.database import Pool, Row


def names(marks: Iterable[track_pb2.Mark.ValueType]) -> list[str]:
    """Marks as they are stored."""
    return sorted(track_pb2.Mark.Name(mark).removeprefix("MARK_") for mark in marks)


class MarkedStems:
    """Finds stems, and has those made that a mark asks for."""

    def __init__(self, pool: Pool, creator: JobCreator, settings: Settings) -> None:
        self._pool = pool
        self._creator = creator
        self._settings = settings

    async def prepare(
        self,
        track: Row,
        priority: job_pb2.Priority.ValueType,
        audio_format: audio_pb2.AudioFormat.ValueType = audio_pb2.AUDIO_FORMAT_FLAC,
    ) -> dict[str, str]:
        """Have the stems of a track's marks made that are missing in this format.

        Args:
            track: A row of TRACK_COLUMNS.
            priority: Who waits for them.
            audio_format: How they are encoded.

        Returns:
            For each of them the job, "jobs/{id}", that makes it, or has just failed to for good.
        """
        spec = job_pb2.SeparationSpec(track=f"tracks/{track['id']}", format=audio_format, model=self._settings.model)
        stored = await self._pool.fetch(
            "SELECT stem FROM stems WHERE sha256 = $1 AND model = $2 AND format = $3",
            track["sha256"],
            versioned(spec.model),
            messages.audio_format(audio_format).value,
        )
        missing = marked_stems(track["marks"]) - {row["stem"] for row in stored}
        jobs = {stem: job for stem, job in (await self._at_it(track, spec, priority)).items() if stem in missing}
        rest = missing - jobs.keys()
        if rest:
            spec.stems.extend(messages.STEMS[stem] for stem in sorted(rest))

            async def subject() -> Subject:
                return Subject(track["id"], None, locks.of_separation(track["sha256"], spec))

            job = await self._creator.create("SEPARATE", spec, str(uuid4()), priority, subject)
            jobs |= dict.fromkeys(rest, job.name)
        return jobs

    async def _at_it(
        self, track: Row, spec: job_pb2.SeparationSpec, priority: job_pb2.Priority.ValueType
    ) -> dict[str, str]:
        """Which job makes a stem, of those of at least this priority; a failure for good stands for a minute."""
        rows = await self._pool.fetch(
            """SELECT id, spec FROM jobs
               WHERE track_id = $1 AND owner = $2 AND kind = 'SEPARATE'
                 AND spec ->> 'model' = $3 AND spec ->> 'format' = $4
                 AND (state IN ('QUEUED', 'RUNNING') AND NOT cancel_requested AND priority >= $5
                      OR state = 'FAILED' AND NOT (error ->> 'retryable')::boolean
                         AND ended_at > now() - interval '1 minute')""",
            track["id"],
            track["owner"],
            spec.model,
            audio_pb2.AudioFormat.Name(spec.format),
            job_pb2.Priority.Name(priority).removeprefix("PRIORITY_"),  # INTERACTIVE is greater than BACKGROUND
        )
        return {
            messages.STEM_NAMES[audio_pb2.StemKind.Value(stem)]: f"jobs/{row['id']}"
            for row in rows
            for stem in row["spec"]["stems"]
        }

    async def find(self, name: str) -> tuple[str, Row]:
        """The name of the track and the row of the caller's stem of that resource name.

        Raises:
            ApiError: NOT_FOUND; or FAILED_PRECONDITION with reason STEM_BEING_MADE and the ``job``, when it is one of a
                mark of the track: it was removed, or is not made yet.
        """
        track_name, _, stem_id = name.partition("/stems/")
        track = await find_track(self._pool, track_name)
        parts = stem_id.split(".")
        if len(parts) == 3:
            for row in await self._pool.fetch(
                "SELECT * FROM stems WHERE sha256 = $1 AND model = $2 AND stem = $3",
                track["sha256"],
                parts[0],
                parts[1],
            ):
                if messages.stem_id(row) == stem_id:
                    return track_name, row
            if (
                track["marks"]
                and parts[0] == versioned(self._settings.model)
                and parts[1] in marked_stems(track["marks"])
            ):
                await self._have_made(track, name, *parts[1:])
        raise not_found("stem", name)

    async def _have_made(self, track: Row, name: str, stem: str, extension: str) -> None:
        for encoding in AudioFormat:
            if encoding.extension == extension:
                jobs = await self.prepare(track, job_pb2.PRIORITY_INTERACTIVE, messages.FORMATS[encoding])
                if stem in jobs:
                    raise ApiError(
                        grpc.StatusCode.FAILED_PRECONDITION,
                        "STEM_BEING_MADE",
                        f"{name} is being made; watch {jobs[stem]}",
                        metadata={"job": jobs[stem]},
                    )
