"""The pipeline of SEPARATE jobs: decode, separate, encode, store; all streamed."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import asyncpg
import numpy as np
from contrafact.v1 import job_pb2
from google.protobuf import json_format
from numpy.typing import NDArray

from servers.inference.keeper import ModelKeeper, ModelUnavailable
from servers.inference.models import SEPARATION_MODELS
from servers.inference.separation import (
    CHANNELS,
    SAMPLE_RATE,
    SOURCES,
    Level,
    SegmentFailed,
    Separated,
    Separator,
)
from servers.media.blocks import Block
from servers.media.decode import decode
from servers.media.encode import AudioFormat, Encoder
from servers.media.errors import MediaError
from servers.media.resample import resample, resampled_frames
from servers.orchestrator.jobs import messages
from servers.orchestrator.jobs.runner import JobFailure, JobRun
from servers.orchestrator.jobs.store import LeaseLost
from servers.orchestrator.pipelines.growing import GrowingStem
from servers.platform import telemetry
from servers.platform.settings import Settings
from servers.platform.tasks import together
from servers.storage import keys
from servers.storage.database import Connection, Pool, Row, exclusive
from servers.storage.objects import ObjectMissing, ObjectStore

DEFAULT_STEMS = ("vocals", "drums", "bass", "other")
INSTRUMENTAL = "instrumental"
# Shares of the whole work that are done when a stage ends.
FETCHED, SEPARATED = 0.01, 0.97

Samples = NDArray[np.float32]
T = TypeVar("T")


class SeparatePipeline:
    """Runs SEPARATE jobs."""

    def __init__(
        self, pool: Pool, objects: ObjectStore, separator: Separator, keeper: ModelKeeper, settings: Settings
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._separator = separator
        self._keeper = keeper
        self._settings = settings

    async def __call__(self, run: JobRun) -> None:
        """Make the stems that the job wants and nobody has made yet."""
        spec = json_format.ParseDict(run.row["spec"], job_pb2.SeparationSpec())
        audio_format = next(key for key, value in messages.FORMATS.items() if value == spec.format)
        model = f"{spec.model}-{SEPARATION_MODELS[spec.model]}"
        recording = await self._pool.fetchrow(
            "SELECT r.* FROM recordings r JOIN tracks t USING (sha256) WHERE t.id = $1", run.row["track_id"]
        )
        if recording is None:
            raise JobFailure("TRACK_DELETED", "the track was deleted")
        missing = []
        for stem in (messages.STEM_NAMES[kind] for kind in spec.stems):
            row = await self._assign(self._pool, run, recording["sha256"], model, stem, audio_format)
            if row is None:
                missing.append(stem)
            else:
                await self._announce(run, row)
        if not missing:
            return
        try:
            with tempfile.TemporaryDirectory(prefix="contrafact-", dir=self._settings.temporary_folder) as folder:
                source = Path(folder) / "source"
                await self._fetch(run, recording, source)
                await run.stage("LOAD_MODEL")
                await self._keeper.wait()
                await run.stage("SEPARATE")
                stems = await self._separate(run, recording, source, missing, audio_format)
            await run.stage("PUBLISH")
            await self._publish(run, recording, model, stems)
        except MediaError as error:
            raise JobFailure(error.reason, str(error)) from error
        except ModelUnavailable as error:
            telemetry.log().error("model unavailable", error=str(error))  # it names files: not for callers
            raise JobFailure("MODEL_UNAVAILABLE", "the model could not be loaded", retryable=True) from error
        except SegmentFailed as error:
            telemetry.log().error("separation failed", error=str(error))
            raise JobFailure("MODEL_FAILED", "the model failed on a segment", retryable=True) from error

    async def _fetch(self, run: JobRun, recording: Row, source: Path) -> None:
        await run.stage("FETCH")
        try:
            await self._objects.fetch(recording["object_key"], source)
        except ObjectMissing as error:
            raise JobFailure("TRACK_DELETED", "the track's bytes are gone") from error
        await run.progress(FETCHED)

    async def _separate(
        self, run: JobRun, recording: Row, source: Path, stems: list[str], audio_format: AudioFormat
    ) -> list[GrowingStem]:
        rate, frames = recording["sample_rate"], recording["frames"]
        channels = min(recording["channels"], CHANNELS)
        growing = {
            stem: GrowingStem(
                run,
                self._pool,
                self._objects,
                stem,
                audio_format,
                Encoder(audio_format, sample_rate=rate, channels=channels, frames=frames),
            )
            for stem in stems
        }
        level = Level(recording["mean"], recording["std"])
        model_frames = max(1, resampled_frames(frames, rate, SAMPLE_RATE))
        async with AsyncExitStack() as streams:

            def opened(stream: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
                streams.push_async_callback(stream.aclose)
                return stream

            mix = opened(_stereo(opened(resample(opened(decode(source)), SAMPLE_RATE, frames=model_frames))))
            name = f"{run.id}/{run.attempt}"
            separated = opened(
                self._separator.separate(mix, model_frames, level, priority=run.priority, request_id=name)
            )
            blocks = opened(resample(opened(_as_blocks(separated)), rate, frames=frames))
            # The instrumental is the track minus its vocals, so it needs the track beside the stems.
            original = FrameReader(opened(decode(source))) if INSTRUMENTAL in stems else None
            async for block in blocks:
                parts = {name: _part(block, index, channels) for index, name in enumerate(SOURCES)}
                if original is not None:
                    parts[INSTRUMENTAL] = await original.take(block.frames) - parts["vocals"]
                await together(*(growing[stem].write(parts[stem]) for stem in stems))
                await run.progress(FETCHED + (SEPARATED - FETCHED) * block.end / frames)
        await together(*(stem.finish() for stem in growing.values()))
        return list(growing.values())

    async def _publish(self, run: JobRun, recording: Row, model: str, stems: list[GrowingStem]) -> None:
        """Put finished stems in their place, except those that a newer attempt or another job put there before."""
        sha256 = recording["sha256"]
        # Against such another, and against the deletion of the track.
        async with exclusive(self._pool, sha256) as connection:
            known = {
                (row["stem"], row["format"])
                for row in await connection.fetch("SELECT * FROM stems WHERE sha256 = $1 AND model = $2", sha256, model)
            }
            new = [stem for stem in stems if (stem.stem, stem.format.value) not in known]
            places = {stem.stem: keys.stem(sha256, model, stem.stem, stem.format.extension) for stem in new}
            await together(
                *(
                    self._objects.put_concatenated(places[stem.stem], stem.pieces, stem.size, stem.format.media_type)
                    for stem in new
                )
            )
            try:
                async with connection.transaction():
                    await run.store.hold(connection, run.id, run.attempt)
                    for stem in new:
                        await self._insert(connection, recording, model, stem, places[stem.stem])
                    rows = [
                        await self._assign(connection, run, sha256, model, stem.stem, stem.format) for stem in stems
                    ]
            except (LeaseLost, asyncpg.ForeignKeyViolationError):  # nobody will ever ask for what was put
                await self._objects.delete(list(places.values()))
                raise
        for row in rows:
            assert row is not None
            await self._announce(run, row)

    async def _insert(self, connection: Connection, recording: Row, model: str, stem: GrowingStem, place: str) -> None:
        await connection.execute(
            """INSERT INTO stems (sha256, model, stem, format, object_key, size_bytes, content_sha256,
                                  sample_rate, channels, frames, peak, clipped)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)""",
            recording["sha256"],
            model,
            stem.stem,
            stem.format.value,
            place,
            stem.size,
            stem.sha256,
            stem.encoder.output_rate,
            min(recording["channels"], CHANNELS),
            stem.encoder.output_frames,
            stem.encoder.peak,
            stem.encoder.clipped,
        )

    async def _assign(
        self, database: Pool | Connection, run: JobRun, sha256: str, model: str, stem: str, audio_format: AudioFormat
    ) -> Row | None:
        """Make a stored stem one of the job's; None: it is not stored."""
        return await database.fetchrow(
            """WITH found AS (
                   SELECT * FROM stems WHERE sha256 = $2 AND model = $3 AND stem = $4 AND format = $5
               ), assigned AS (
                   INSERT INTO job_stems (job_id, sha256, model, stem, format)
                   SELECT $1, sha256, model, stem, format FROM found ON CONFLICT DO NOTHING
               )
               SELECT * FROM found""",
            run.id,
            sha256,
            model,
            stem,
            audio_format.value,
        )

    async def _announce(self, run: JobRun, row: Row) -> None:
        artifact = messages.artifact(row, f"tracks/{run.row['track_id']}")
        if artifact.clipped_samples:
            over = 20 * np.log10(artifact.peak)
            run.warnings.append(
                f"{row['stem']}: {artifact.clipped_samples} samples above full scale (peak {over:+.2f} dBFS) "
                f"were clipped by {row['format']}; ask for wav to keep them"
            )
        await run.events.publish(run.id, job_pb2.JobEvent(artifact=artifact))


class FrameReader:
    """Reads a stream of blocks by a number of frames of one's own choice."""

    def __init__(self, blocks: AsyncIterator[Block]) -> None:
        self._blocks = blocks
        self._rest: list[Samples] = []

    async def take(self, frames: int) -> Samples:
        """The next ``frames`` frames [channels, frames]; raises ValueError if there are fewer."""
        taken: list[Samples] = []
        while frames:
            if not self._rest:
                block = await anext(self._blocks, None)
                if block is None:
                    raise ValueError(f"the stream ended {frames} frames early")
                self._rest.append(block.samples)
            samples = self._rest.pop()
            if samples.shape[1] > frames:
                self._rest.append(samples[:, frames:])
                samples = samples[:, :frames]
            taken.append(samples)
            frames -= samples.shape[1]
        return np.concatenate(taken, axis=1)


async def _stereo(blocks: AsyncIterator[Block]) -> AsyncGenerator[Block, None]:
    """Mono blocks with both channels alike; stereo blocks as they are."""
    async for block in blocks:
        samples = np.repeat(block.samples, CHANNELS, axis=0) if block.channels == 1 else block.samples
        yield Block(samples, block.sample_rate, block.start)


async def _as_blocks(separated: AsyncIterator[Separated]) -> AsyncGenerator[Block, None]:
    """All channels of all sources side by side, so that one resampler serves them."""
    async for part in separated:
        yield Block(part.samples.reshape(len(SOURCES) * CHANNELS, -1), SAMPLE_RATE, part.start)


def _part(block: Block, index: int, channels: int) -> Samples:
    """The source ``index`` of a block of all sources, [channels, frames]."""
    samples = block.samples[index * CHANNELS : (index + 1) * CHANNELS]
    return samples if channels == CHANNELS else samples.mean(axis=0, keepdims=True)
