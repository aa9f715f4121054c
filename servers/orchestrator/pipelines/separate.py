"""The pipeline of SEPARATE jobs: decode, separate, encode, store; all streamed."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

from contrafact.v1 import job_pb2
from google.protobuf import json_format

from servers.inference.keeper import ModelKeeper
from servers.inference.models import versioned
from servers.inference.separation import Separator
from servers.media.decode import decode
from servers.media.encode import AudioFormat
from servers.orchestrator.jobs import messages
from servers.orchestrator.jobs.runner import JobRun
from servers.orchestrator.pipelines.failures import told_to_the_caller
from servers.orchestrator.pipelines.growing import GrowingFile, GrowingFiles
from servers.orchestrator.pipelines.recordings import FETCHED, FrameReader, Recordings, separated
from servers.orchestrator.pipelines.stems import Stems
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
    ) -> None:
        self._files = GrowingFiles(pool, objects)
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
                await run.stage("LOAD_MODEL")
                await self._keeper.wait()
                await run.stage("SEPARATE")
                made = await self._separate(run, recording, source, missing, audio_format)
            await run.stage("PUBLISH")
            await self._stems.publish(run, recording, model, made)

    async def _separate(
        self, run: JobRun, recording: Row, source: Path, stems: list[str], audio_format: AudioFormat
    ) -> list[GrowingFile]:
        growing = {stem: self._files.new(run, recording, stem, audio_format) for stem in stems}
        async with (
            aclosing(separated(self._separator, run, recording, source)) as blocks,
            aclosing(decode(source)) as decoded,
        ):
            # The instrumental is the track minus its vocals, so it needs the track beside the stems.
            original = FrameReader(decoded) if INSTRUMENTAL in stems else None
            async for sources in blocks:
                vocals = sources["vocals"]
                parts = {name: block.samples for name, block in sources.items()}
                if original is not None:
                    parts[INSTRUMENTAL] = await original.take(vocals.frames) - vocals.samples
                await together(*(growing[stem].write(parts[stem]) for stem in stems))
                await run.progress(FETCHED + (SEPARATED - FETCHED) * vocals.end / recording["frames"])
        await together(*(stem.finish() for stem in growing.values()))
        return list(growing.values())
