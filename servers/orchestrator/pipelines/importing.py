"""The pipeline of IMPORT jobs: a recording in the object store, which is only ever read, becomes a track."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import UUID

from contrafact.v1 import job_pb2
from google.protobuf import json_format

from servers.media.errors import MediaError, Reason
from servers.media.probe import TrackFacts, probe_isolated
from servers.orchestrator.jobs.runner import JobFailure, JobRun
from servers.orchestrator.pipelines.failures import told_to_the_caller
from servers.orchestrator.tracks.register import (
    HEAD_BYTES,
    PROBE_SECONDS,
    NewRecording,
    NewTrack,
    Registrar,
    check_head,
)
from servers.platform.settings import Settings
from servers.storage.database import Connection, Pool
from servers.storage.objects import ObjectMissing, ObjectStore

# Shares of the whole work that are done then.
FETCHED, PROBED = 0.5, 0.9


class ImportPipeline:
    """Runs IMPORT jobs."""

    def __init__(self, pool: Pool, objects: ObjectStore, settings: Settings) -> None:
        self._objects = objects
        self._registrar = Registrar(pool, objects)
        self._settings = settings

    async def __call__(self, run: JobRun) -> None:
        """Make the track, or find the one of the same bytes, and write it down in the job.

        Raises:
            JobFailure: OBJECT_MISSING, TRACK_TOO_LARGE, TRACK_DELETED, or why the recording is refused.
        """
        spec = json_format.ParseDict(run.row["spec"], job_pb2.ImportSpec())
        if spec.track:  # an attempt before this one came so far
            if run.row["track_id"] is None:
                raise JobFailure("TRACK_DELETED", "the track was deleted")
            return
        folder = tempfile.TemporaryDirectory(
            prefix="contrafact-", dir=self._settings.temporary_folder, ignore_cleanup_errors=True
        )
        with told_to_the_caller(), folder as name:
            await run.stage("FETCH")
            path = Path(name) / "recording"
            sha256, size = await self._fetch(spec.object, path)
            await run.progress(FETCHED)
            await run.stage("PROBE")
            recording = NewRecording(path, sha256, size, self._probe)
            facts = await self._registrar.examine(recording)
            await run.progress(PROBED)
            await run.stage("PUBLISH")

            async def write_down(connection: Connection, track_id: UUID) -> None:
                await run.store.hold(connection, run.id, run.attempt)
                made: dict[str, Any] = {**run.row["spec"], "track": f"tracks/{track_id}"}
                await connection.execute(
                    "UPDATE jobs SET track_id = $2, spec = $3 WHERE id = $1", run.id, track_id, made
                )

            new = NewTrack(run.row["owner"], spec.object, recording, spec.tags)
            await self._registrar.register(new, facts, write_down)

    async def _fetch(self, key: str, path: Path) -> tuple[str, int]:
        """Copy an object to a file, unless its beginning shows that it is no audio; returns its digest and size."""
        if any(part in ("", ".", "..") for part in key.split("/")):  # on its way another name is made of such
            raise _missing()
        limit = self._settings.max_upload_bytes
        digest, size, head = hashlib.sha256(), 0, b""
        try:
            whole = await self._objects.size(key)
            async with aclosing(self._objects.read(key)) as pieces:
                with path.open("wb") as file:
                    async for data in pieces:
                        file.write(data)
                        digest.update(data)
                        size += len(data)
                        if len(head) < HEAD_BYTES:
                            head += data[: HEAD_BYTES - len(head)]
                            if len(head) == HEAD_BYTES:
                                check_head(head, whole)
                        if size > limit or (whole > limit and len(head) == HEAD_BYTES):
                            raise JobFailure("TRACK_TOO_LARGE", f"a track has at most {limit} bytes")
        except ObjectMissing as error:
            raise _missing() from error
        if len(head) < HEAD_BYTES:
            check_head(head, size)
        return digest.hexdigest(), size

    async def _probe(self, path: Path) -> TrackFacts:
        try:
            return await probe_isolated(path, max_seconds=self._settings.max_track_seconds, timeout=PROBE_SECONDS)
        except MediaError as error:
            if error.reason in (Reason.PROBE_TIMEOUT, Reason.PROBE_CRASHED):  # this machine's fault, it may be
                raise JobFailure(error.reason, error.message, retryable=True) from error
            raise


def _missing() -> JobFailure:
    return JobFailure("OBJECT_MISSING", "there is no such object")
