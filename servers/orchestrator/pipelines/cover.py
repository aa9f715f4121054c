"""The pipeline of COVER jobs; ``cover_stream`` is what it streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from itertools import takewhile
from pathlib import Path, PurePath

from contrafact.v1 import job_pb2
from google.protobuf import json_format

from servers.inference.keeper import ModelKeeper
from servers.inference.models import versioned
from servers.inference.triton import TritonError
from servers.inference.voices import VoiceModel
from servers.media.encode import AudioFormat
from servers.orchestrator.jobs import messages
from servers.orchestrator.jobs.runner import JobFailure, JobRun
from servers.orchestrator.pipelines.checkpoints import Checkpoints
from servers.orchestrator.pipelines.cover_stream import CoverStream, Engines
from servers.orchestrator.pipelines.covers import Covers, cover_id
from servers.orchestrator.pipelines.failures import told_to_the_caller
from servers.orchestrator.pipelines.growing import GrowingFile, GrowingFiles
from servers.orchestrator.pipelines.recordings import FETCHED, Recordings
from servers.orchestrator.pipelines.stems import Stems
from servers.orchestrator.voices.store import VoiceStore, files_of
from servers.platform.tasks import together
from servers.storage.database import Pool, Row
from servers.storage.objects import ObjectStore

MIXED = 0.98  # share of the whole work that is done then


class CoverPipeline:
    """Runs COVER jobs; ``keeper`` looks after the model that separates, ``voice_keeper`` the one that converts."""

    def __init__(
        self,
        pool: Pool,
        objects: ObjectStore,
        recordings: Recordings,
        stems: Stems,
        engines: Engines,
        keeper: ModelKeeper,
        voice_keeper: ModelKeeper,
        voices: VoiceModel,
        voice_store: VoiceStore,
    ) -> None:
        self._files = GrowingFiles(pool, objects)
        self._checkpoints = Checkpoints(pool, objects)
        self._recordings = recordings
        self._stems = stems
        self._covers = Covers(pool, objects)
        self._engines = engines
        self._keeper = keeper
        self._voice_keeper = voice_keeper
        self._voices = voices
        self._voice_store = voice_store

    async def __call__(self, run: JobRun) -> None:
        """Make the cover, unless the same was made before."""
        spec = json_format.ParseDict(run.row["spec"], job_pb2.CoverSpec())
        recording = await self._recordings.of(run)
        voice_id = run.row["voice_id"]
        voice = await self._voice_store.used(voice_id) if voice_id else None
        if voice is None:
            raise JobFailure("VOICE_DELETED", "the voice was deleted")
        if spec.conversion.auto_octave and voice["pitch_median"] is None:
            raise JobFailure("VOICE_PITCH_UNKNOWN", "the voice's pitch is not known any more")
        identity = cover_id(run.row["owner"], recording["sha256"], voice, spec)
        if await self._covers.take(run, identity):
            return
        sha256, model = recording["sha256"], versioned(spec.model)
        stored = await self._stems.exact(sha256, model, "vocals")
        cover = self._files.new(run, recording, "cover", messages.audio_format(spec.format), _tags(recording, voice))
        with told_to_the_caller():
            async with self._recordings.fetched(run, recording, *([stored["object_key"]] if stored else [])) as files:
                vocals: GrowingFile | Path
                vocals = files[1] if files[1:] else self._files.new(run, recording, "vocals", AudioFormat.FLAC)
                separating = vocals if isinstance(vocals, GrowingFile) else None
                await self._load(run, voice, separating=separating is not None)
                async with aclosing(self._begun(run, separating)) as begun:
                    stream = CoverStream(self._engines, run, spec, recording, voice, files[0], vocals, begun)
                    works = [self._render(run, recording, stream, cover)]
                    if separating is not None:
                        works.append(self._publish(run, recording, model, stream, separating))
                    await together(*works)
            await run.stage("PUBLISH")
            if separating is None and stored:
                await self._stems.take(run, sha256, model, "vocals", AudioFormat(stored["format"]))
            await self._covers.publish(run, identity, recording, cover, stream.semitones, stream.report)

    async def _render(self, run: JobRun, recording: Row, stream: CoverStream, cover: GrowingFile) -> None:
        async with aclosing(stream.blocks()) as blocks:
            async for block in blocks:
                await cover.write(block)
                await run.progress(FETCHED + (MIXED - FETCHED) * block.end / recording["frames"])
        await cover.finish()

    async def _publish(self, run: JobRun, recording: Row, model: str, stream: CoverStream, vocals: GrowingFile) -> None:
        """Publish the vocals as soon as there are all: no later attempt, nor another cover, separates them again."""
        await stream.separated.wait()
        await self._stems.publish(run, recording, model, [vocals])

    async def _begun(self, run: JobRun, vocals: GrowingFile | None) -> AsyncGenerator[tuple[Row, bytes], None]:
        """What an earlier attempt has stored of the vocals, as long as their format did not have to clip them."""
        for rows in await self._checkpoints.rows(run, [vocals]) if vocals is not None else []:
            exact = list(takewhile(lambda row: not row["clipped"], rows))
            async with aclosing(self._checkpoints.read(exact)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _load(self, run: JobRun, voice: Row, *, separating: bool) -> None:
        await run.stage("LOAD_MODEL")
        await self._voice_keeper.wait()
        with suppress(TritonError):  # else its first chunk loads it
            await self._voices.warm(files_of(voice))
        if separating:
            await self._keeper.wait()


def _tags(recording: Row, voice: Row) -> dict[str, str]:
    return {
        "title": PurePath(recording["display_name"]).stem,
        "artist": voice["display_name"],
        "comment": "A cover made with Contrafact",
    }
