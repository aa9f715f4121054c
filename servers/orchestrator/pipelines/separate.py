"""The pipeline of SEPARATE jobs: decode, separate, encode, store; all streamed.

An attempt goes on where an earlier one was cut short; see ``growing``.
"""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

from contrafact.v1 import job_pb2
from google.protobuf import json_format

from servers.inference.keeper import ModelKeeper
from servers.inference.models import versioned
from servers.inference.separation import Separator
from servers.media.blocks import Block
from servers.media.decode import decode
from servers.orchestrator.jobs import messages
from servers.orchestrator.jobs.runner import JobRun
from servers.orchestrator.pipelines.checkpoints import Checkpoints, resumed
from servers.orchestrator.pipelines.failures import told_to_the_caller
from servers.orchestrator.pipelines.growing import GrowingFile, GrowingFiles
from servers.orchestrator.pipelines.recordings import FETCHED, FrameReader, Recordings, separated
from servers.orchestrator.pipelines.stems import Stems
from servers.platform.settings import Settings
from servers.platform.tasks import together
from servers.storage.database import Pool, Row
from servers.storage.objects import ObjectStore

DEFAULT_STEMS = ("vocals", "drums", "bass", "other")
INSTRUMENTAL = "instrumental"
SEPARATED = 0.97  # share of the whole work that is done then


class SeparatePipeline:
    """Runs SEPARATE jobs."""

    def __init__(
        self,
        pool: Pool,
        objects: ObjectStore,
        recordings: Recordings,
        stems: Stems,
        separator: Separator,
        keeper: ModelKeeper,
        settings: Settings,
    ) -> None:
        self._files = GrowingFiles(pool, objects, checkpoint_seconds=settings.checkpoint_seconds)
        self._checkpoints = Checkpoints(pool, objects)
        self._recordings = recordings
        self._stems = stems
        self._separator = separator
        self._keeper = keeper

    async def __call__(self, run: JobRun) -> None:
        """Make the stems that the job wants and nobody has made yet."""
        spec = json_format.ParseDict(run.row["spec"], job_pb2.SeparationSpec())
        audio_format = messages.audio_format(spec.format)
        model = versioned(spec.model)
        recording = await self._recordings.of(run)
        missing = [
            stem
            for stem in (messages.STEM_NAMES[kind] for kind in spec.stems)
            if await self._stems.take(run, recording["sha256"], model, stem, audio_format) is None
        ]
        if not missing:
            return
        with told_to_the_caller():
            async with self._recordings.fetched(run, recording) as (source,):
                growing = [self._files.new(run, recording, stem, audio_format) for stem in missing]
                await self._resume(run, recording, growing)
                await run.stage("LOAD_MODEL")
                await self._keeper.wait()
                await run.stage("SEPARATE")
                await self._separate(run, recording, source, growing)
            await run.stage("PUBLISH")
            await self._stems.publish(run, recording, model, growing)

    async def _resume(self, run: JobRun, recording: Row, growing: list[GrowingFile]) -> None:
        """Begin with what an earlier attempt has made."""

        async def replay(file: GrowingFile, rows: list[Row]) -> None:
            async with aclosing(self._checkpoints.read(rows)) as pieces, aclosing(file.replay(pieces)) as blocks:
                async for _ in blocks:
                    await run.progress(_fraction(_common(growing), recording))

        rows = await self._checkpoints.rows(run, growing)
        await together(*(replay(file, pieces) for file, pieces in zip(growing, rows, strict=False)))
        resumed(run, recording, _common(growing))

    async def _separate(self, run: JobRun, recording: Row, source: Path, growing: list[GrowingFile]) -> None:
        start = _common(growing)
        # The instrumental is the track minus its vocals, so it needs the track beside the stems.
        subtracting = any(file.name == INSTRUMENTAL for file in growing)
        async with (
            aclosing(separated(self._separator, run, recording, source, start=start)) as blocks,
            aclosing(decode(source, start=start)) as decoded,
        ):
            original = FrameReader(decoded) if subtracting else None
            async for parts in blocks:
                vocals = parts["vocals"]
                if original is not None:
                    rest = await original.take(vocals.frames) - vocals.samples
                    parts[INSTRUMENTAL] = Block(rest, vocals.sample_rate, vocals.start)
                await together(*(file.write(parts[file.name]) for file in growing))
                await run.progress(_fraction(vocals.end, recording))
        await together(*(file.finish() for file in growing))


def _common(growing: list[GrowingFile]) -> int:
    """Frames that all of these files have."""
    return min(file.frames for file in growing)


def _fraction(frames: int, recording: Row) -> float:
    """The share of the whole work that is done when so many frames are separated."""
    return FETCHED + (SEPARATED - FETCHED) * frames / int(recording["frames"])
