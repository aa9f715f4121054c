"""The pipeline of MIX jobs; ``mix_stream`` is what it streams."""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

from contrafact.v1 import job_pb2
from google.protobuf import json_format

from servers.media.resample import resampled_frames
from servers.orchestrator.engines.grains import Grains
from servers.orchestrator.engines.mixer import Mixer
from servers.orchestrator.jobs import messages
from servers.orchestrator.jobs.runner import JobRun
from servers.orchestrator.mixes.layers import Layers
from servers.orchestrator.mixes.store import MixStore
from servers.orchestrator.mixes.traces import Traces
from servers.orchestrator.pipelines.failures import told_to_the_caller
from servers.orchestrator.pipelines.growing import GrowingFile, GrowingFiles, Shape
from servers.orchestrator.pipelines.mix_sources import MixSources, Studio
from servers.orchestrator.pipelines.mix_stream import MixStream
from servers.orchestrator.pipelines.recordings import FETCHED, Recordings
from servers.orchestrator.styles.libraries import Libraries
from servers.platform.settings import Settings
from servers.platform.slots import Slots
from servers.storage.database import Pool, Row
from servers.storage.objects import ObjectStore

MEASURED, MIXED = 0.5, 0.98  # shares of the whole work that are done then
_CALLS = 6  # of the grains engine at once, for one mix: a trace and a rendering of each of three stems


class MixPipeline:
    """Runs MIX jobs.

    Args:
        pool, objects, recordings, mixer, grains, libraries: What they work with.
        settings: How many calls the grains engine takes, and where temporary files are.
    """

    def __init__(
        self,
        pool: Pool,
        objects: ObjectStore,
        recordings: Recordings,
        mixer: Mixer,
        grains: Grains,
        libraries: Libraries,
        settings: Settings,
    ) -> None:
        self._files = GrowingFiles(pool, objects)
        self._studio = Studio(pool, objects, self._files, Layers(pool, objects), Traces(pool), libraries, grains)
        self._mixes = MixStore(pool, objects)
        self._recordings = recordings
        self._mixer = mixer
        self._folder = settings.temporary_folder
        # All calls of a mix go on together or not at all: two that have half of theirs would wait for each other.
        self._room = Slots("playing", max(1, settings.grains_in_flight // _CALLS))

    async def __call__(self, run: JobRun) -> None:
        """Render the mix, unless an earlier attempt has."""
        spec = json_format.ParseDict(run.row["spec"], job_pb2.MixSpec())
        recording = await self._recordings.of(run)
        mix = await self._mixes.of_job(spec)
        if mix["rendered_revision"] == spec.revision:
            return
        config, shape = spec.config, _shape(spec.config, recording)
        tags = {"title": mix["display_name"], "comment": "A mix made with Contrafact"}
        file = self._files.new(run, shape, "mix", messages.audio_format(config.format), tags)
        with (
            told_to_the_caller(),
            tempfile.TemporaryDirectory(prefix="contrafact-", dir=self._folder, ignore_cleanup_errors=True) as folder,
        ):
            await run.stage("FETCH")
            sources = MixSources(self._studio, run, config, Path(folder))
            await sources.fetch(recording["sha256"], mix["model"])
            await run.progress(FETCHED)
            stream = MixStream(self._mixer, run.priority, config, shape, sources.sources)
            async with AsyncExitStack() as held:
                if sources.playing:
                    await held.enter_async_context(self._room.hold(run.priority))
                if stream.heard_twice:
                    await self._measure(run, stream, sources)
                await self._render(run, stream, file, sources.report.gain_db)
        await run.stage("PUBLISH")
        sources.report.max_gain_reduction_db = stream.report.max_gain_reduction_db
        await self._mixes.publish(run, spec, file, stream.report, sources.report)

    async def _measure(self, run: JobRun, stream: MixStream, sources: MixSources) -> None:
        async def progress(share: float) -> None:
            await run.progress(FETCHED + (MEASURED - FETCHED) * share)

        await run.stage("MEASURE")
        sources.report.gain_db = await stream.gain(progress)
        await sources.fetch_made()

    async def _render(self, run: JobRun, stream: MixStream, file: GrowingFile, gain: float) -> None:
        begun = MEASURED if stream.heard_twice else FETCHED
        await run.stage("MIX")
        async with aclosing(stream.blocks(gain)) as blocks:
            async for block in blocks:
                await file.write(block)
                await run.progress(begun + (MIXED - begun) * block.end / stream.shape.frames)
        await file.finish()


def _shape(config: job_pb2.MixConfig, recording: Row) -> Shape:
    frames = resampled_frames(recording["frames"], recording["sample_rate"], config.sample_rate)
    return Shape(config.sample_rate, config.channels, max(1, frames))
