"""The pipeline of STYLE jobs: a sound is decoded, cut by the grains engine, and its grain library stored."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import numpy as np
from contrafact.engine.v1 import grains_pb2
from contrafact.v1 import grain_pb2, job_pb2
from google.protobuf import json_format
from numpy.typing import NDArray

from servers.grains.library import VERSION
from servers.media.encode import AudioFormat, Encoder
from servers.orchestrator.engines.grains import Grains, GrainsError
from servers.orchestrator.jobs.runner import JobFailure, JobRun
from servers.orchestrator.pipelines.failures import told_to_the_caller
from servers.orchestrator.pipelines.recordings import FETCHED, Recordings, channels
from servers.orchestrator.stretches import part, stretch
from servers.storage import keys
from servers.storage.database import Connection, Pool, Row, exclusive
from servers.storage.objects import ObjectStore

CUT = 0.95  # share of the whole work that is done then
MOST_BYTES = 1_000_000_000  # of a library that the grains engine can be given
PREVIEW_FORMAT = AudioFormat.OPUS
_PREVIEW_SECONDS = 11.0  # longer than any
_STEP = 0.02  # of progress, between two events that tell it
_FLOAT = np.dtype("<f4")

_REFUSALS = {
    "STYLE_SILENT": "nothing can be heard in the sound: all of it is below -70 dBFS",
    "NO_GRAINS": "no piece of the sound that is heard is as long as 512 frames; another top_db may help",
    "TOO_MANY_GRAINS": "the sound has more than 200,000 grains; make them longer, or use less of it",
}


class StylePipeline:
    """Runs STYLE jobs."""

    def __init__(self, pool: Pool, objects: ObjectStore, recordings: Recordings, grains: Grains) -> None:
        self._pool = pool
        self._objects = objects
        self._recordings = recordings
        self._grains = grains

    async def __call__(self, run: JobRun) -> None:
        """Build the library of the style, unless it was built.

        Raises:
            JobFailure: STYLE_DELETED, STYLE_SILENT, NO_GRAINS, TOO_MANY_GRAINS, or why something failed.
        """
        spec = json_format.ParseDict(run.row["spec"], job_pb2.StyleSpec())
        recording = await self._pool.fetchrow(
            "SELECT r.*, s.library_id FROM styles s JOIN recordings r USING (sha256) WHERE s.id = $1",
            UUID(spec.style.removeprefix("styles/")),
        )
        if recording is None:
            raise _deleted()
        if await _is_built(self._pool, recording["library_id"]):
            return
        with told_to_the_caller():
            async with self._recordings.fetched(run, recording) as (source,):
                await run.stage("CUT")
                built = await self._cut(run, recording, source, spec.cut)
                await run.stage("PUBLISH")
                await self._publish(run, recording, spec.cut, built)

    async def _cut(self, run: JobRun, recording: Row, source: Path, cut: grain_pb2.Cut) -> _Built:
        rate = recording["sample_rate"]
        start, frames = part(cut.start_seconds, cut.seconds, rate, recording["frames"])
        spec = grains_pb2.BuildSpec(sample_rate=rate, channels=channels(recording), frames=frames, cut=cut)
        path = source.with_name("library")
        try:
            with path.open("wb") as file:
                async with (
                    aclosing(stretch(source, start, frames)) as blocks,
                    aclosing(self._grains.build(spec, blocks, priority=run.priority)) as responses,
                ):
                    building = Building(run, spec)
                    async for response in responses:
                        if data := await building.take(response):
                            await asyncio.to_thread(file.write, data)
        except GrainsError as error:
            if error.reason in _REFUSALS:
                raise JobFailure(error.reason, _REFUSALS[error.reason]) from error
            raise
        return await asyncio.to_thread(building.built, path)

    async def _publish(self, run: JobRun, recording: Row, cut: grain_pb2.Cut, built: _Built) -> None:
        """Put a library in its place, unless another job put it there before, or nobody wants it any more."""
        library: UUID = recording["library_id"]
        # Against who deletes its last style.
        async with exclusive(self._pool, str(library)) as connection:
            if await _is_built(connection, library):
                return
            key = keys.library(library, built.sha256)
            preview = keys.preview(library, built.preview_sha256, PREVIEW_FORMAT.extension)
            await self._objects.put_file(key, built.path, "application/octet-stream")
            await self._objects.put(preview, built.preview, PREVIEW_FORMAT.media_type)
            async with connection.transaction():
                wanted = await connection.fetchval(
                    "SELECT 1 FROM styles WHERE library_id = $1 LIMIT 1 FOR KEY SHARE", library
                )
                if wanted:
                    await run.store.hold(connection, run.id, run.attempt)
                    await _insert(connection, recording, cut, built, key, preview)
            if not wanted:
                await self._objects.delete_prefix(keys.library_prefix(library))
                raise _deleted()


@dataclass(frozen=True, slots=True)
class _Built:
    """A library, as a file, and what is to be known of it; and its preview, encoded."""

    path: Path
    size: int
    sha256: str
    report: grains_pb2.BuildReport
    preview: bytes
    preview_sha256: str
    preview_rate: int
    preview_frames: int
    peak: float
    clipped: int


class Building:
    """What the grains engine has given so far."""

    def __init__(self, run: JobRun, spec: grains_pb2.BuildSpec) -> None:
        self._run = run
        self._spec = spec
        self._digest = hashlib.sha256()
        self._size = 0
        self._preview: list[NDArray[np.float32]] = []
        self._preview_frames = 0
        self._report = grains_pb2.BuildReport()
        self._told = 0.0  # progress

    async def take(self, response: grains_pb2.BuildResponse) -> bytes:
        """Keep what the engine says; returns what comes next in the library."""
        match response.WhichOneof("response"):
            case "progress":
                if response.progress >= self._told + _STEP:
                    self._told = response.progress
                    await self._run.progress(FETCHED + (CUT - FETCHED) * self._told)
            case "library":
                self._size += len(response.library.data)
                if self._size > MOST_BYTES:
                    message = f"the grains have more than {MOST_BYTES:,} bytes; use less of the sound"
                    raise JobFailure("TOO_MANY_GRAINS", message)
                self._digest.update(response.library.data)
                return response.library.data
            case "preview":
                samples = np.frombuffer(response.preview.samples, _FLOAT).reshape(self._spec.channels, -1)
                self._preview_frames += samples.shape[1]
                if self._preview_frames > _PREVIEW_SECONDS * self._spec.sample_rate:
                    raise JobFailure("GRAINS_FAILED", "the preview is too long")
                self._preview.append(samples.astype(np.float32, copy=False))
            case "report":
                self._report = response.report
                if self._report.version != VERSION:  # while servers are being replaced; it is tried again
                    raise ConnectionError("the grains engine is of another version")
        return b""

    def built(self, path: Path) -> _Built:
        """All of it, its library at ``path``. It encodes the preview, and so takes a moment."""
        samples = np.concatenate(self._preview, axis=1)
        rate, frames = self._spec.sample_rate, samples.shape[1]
        encoder = Encoder(PREVIEW_FORMAT, sample_rate=rate, channels=self._spec.channels, frames=frames)
        preview = encoder.encode(samples) + encoder.finish()
        levels = np.abs(samples)
        return _Built(
            path,
            self._size,
            self._digest.hexdigest(),
            self._report,
            preview,
            hashlib.sha256(preview).hexdigest(),
            encoder.output_rate,
            encoder.output_frames,
            float(levels.max()),
            int(np.count_nonzero(levels > 1)),
        )


async def _is_built(database: Pool | Connection, library: UUID) -> bool:
    return bool(await database.fetchval("SELECT 1 FROM grain_libraries WHERE id = $1", library))


async def _insert(
    connection: Connection, recording: Row, cut: grain_pb2.Cut, built: _Built, key: str, preview: str
) -> None:
    report = built.report
    await connection.execute(
        """INSERT INTO grain_libraries (id, sha256, cut, version, object_key, size_bytes, content_sha256, grain_count,
                                        pitched_count, grain_seconds, low_hz, high_hz, preview_key, preview_bytes,
                                        preview_sha256, preview_rate, preview_channels, preview_frames, preview_peak,
                                        preview_clipped)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)""",
        recording["library_id"],
        recording["sha256"],
        json_format.MessageToDict(cut, preserving_proto_field_name=True),
        report.version,
        key,
        built.size,
        built.sha256,
        report.grains,
        report.pitched,
        report.seconds,
        report.low_hz or None,
        report.high_hz or None,
        preview,
        len(built.preview),
        built.preview_sha256,
        built.preview_rate,
        channels(recording),
        built.preview_frames,
        built.peak,
        built.clipped,
    )


def _deleted() -> JobFailure:
    return JobFailure("STYLE_DELETED", "the style was deleted")
