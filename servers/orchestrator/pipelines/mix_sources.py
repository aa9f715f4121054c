"""What a mix is made of: stems, layers that were made before, and new ones, which are made known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from contrafact.engine.v1 import grains_pb2
from contrafact.v1 import grain_pb2, job_pb2, mix_pb2

from servers.orchestrator.engines.grains import Grains
from servers.orchestrator.jobs.runner import JobFailure, JobRun
from servers.orchestrator.mixes import layers
from servers.orchestrator.mixes.config import heard
from servers.orchestrator.mixes.layers import Layers, layer_id
from servers.orchestrator.mixes.traces import Traces
from servers.orchestrator.pipelines.growing import GrowingFiles, Shape
from servers.orchestrator.pipelines.mix_stream import NewLayer, Source, StoredLayer, StoredStem
from servers.orchestrator.projects.store import stored_stems
from servers.orchestrator.styles.libraries import Libraries, StyleGone, StyleNotReady
from servers.platform import telemetry
from servers.platform.tasks import together
from servers.storage.database import Pool, Row
from servers.storage.objects import ObjectMissing, ObjectStore


@dataclass(frozen=True, slots=True)
class Studio:
    """Where mixes find what they are made of, and put what they have made."""

    pool: Pool
    objects: ObjectStore
    files: GrowingFiles
    layers: Layers
    traces: Traces
    libraries: Libraries
    grains: Grains


@dataclass(frozen=True, slots=True)
class _Part:
    """A stem that is heard; with a style, its grain library and how it is played."""

    name: str
    stem: Row
    style: UUID | None
    library: Row | None
    settings: grain_pb2.GrainSettings

    @property
    def shape(self) -> Shape:
        return Shape(self.stem["sample_rate"], self.stem["channels"], self.stem["frames"])


class MixSources:
    """The sources of one attempt at a mix.

    Args:
        studio: Where they are found.
        run: The job.
        config: Of the mix, with every default written down.
        folder: For as many files as stems are heard.

    Attributes:
        report: What was made and what was there.
        sources: By name of the stem, once they are fetched.
    """

    def __init__(self, studio: Studio, run: JobRun, config: job_pb2.MixConfig, folder: Path) -> None:
        self.report = mix_pb2.MixReport()
        self.sources: dict[str, Source] = {}
        self._studio = studio
        self._run = run
        self._config = config
        self._folder = folder
        self._made: dict[str, Row] = {}  # layers, by name of the stem

    @property
    def playing(self) -> bool:
        """Whether there are layers to be made."""
        return any(isinstance(source, NewLayer) for source in self.sources.values())

    async def fetch(self, sha256: str, model: str) -> None:
        """Find and fetch all of them.

        Args:
            sha256: Of the recording.
            model: That separates it, without its version.

        Raises:
            JobFailure: PROJECT_NOT_READY, STYLE_NOT_READY, STYLE_DELETED.
        """
        stems = await stored_stems(self._studio.pool, sha256, model)
        parts = [await self._part(name, how, stems.get(name)) for name, how in heard(self._config).items()]

        async def fetch(part: _Part) -> None:
            self.sources[part.name] = await self._source(part)

        await together(*(fetch(part) for part in parts))

    async def fetch_made(self) -> None:
        """Fetch the layers that were made meanwhile, to be heard once more."""
        for name, row in self._made.items():
            path = self._folder / f"layer.{name}"
            if not await self._studio.layers.fetch(row, path):
                raise ConnectionError("a layer was lost")  # another attempt makes it
            self.sources[name] = StoredLayer(self.sources[name].shape, path)

    async def _part(self, name: str, how: job_pb2.StemPart, stem: Row | None) -> _Part:
        if stem is None:
            raise _no_stem(name)
        style, library = None, None
        if how.style:
            style = UUID(how.style.removeprefix("styles/"))
            try:
                library = await self._studio.libraries.of(style)
            except StyleGone as error:
                raise _style_deleted(style) from error
            if library is None:
                raise _style_not_ready(style)
        if stem["clipped"] and stem["format"] != "wav":
            self._run.warnings.append(
                f"{name}: {stem['clipped']} samples of the stem were clipped when it was stored; separate it in wav to "
                "keep them"
            )
        return _Part(name, stem, style, library, how.grains if how.HasField("grains") else self._config.grains)

    async def _source(self, part: _Part) -> Source:
        if part.style is None or part.library is None:
            return StoredStem(part.shape, await self._stem(part))
        shape = Shape(part.shape.sample_rate, self._config.channels, part.shape.frames)
        identity = layer_id(part.stem, part.library, part.settings, shape.channels)
        row = await self._studio.layers.find(identity)
        if row is not None:
            path = self._folder / f"layer.{part.name}"
            if await self._studio.layers.fetch(row, path):
                self.report.layers_reused += 1
                telemetry.MIX_PARTS.labels("layer", "reused").inc()
                return StoredLayer(shape, path)
        return await self._new(part, part.style, part.library, shape, identity)

    async def _new(self, part: _Part, style: UUID, library: Row, shape: Shape, identity: UUID) -> NewLayer:
        studio, sha256 = self._studio, part.stem["sha256"]
        file = studio.files.new(self._run, shape, f"layer.{part.name}", layers.FORMAT, announced=False)

        async def read() -> bytes:
            try:
                stored = await studio.libraries.bytes_of(style)
            except StyleGone as error:
                raise _style_deleted(style) from error
            except StyleNotReady as error:
                raise _style_not_ready(style) from error
            if stored.sha256 != library["content_sha256"]:  # it was cut again since
                raise _style_not_ready(style)
            return stored.data

        async def traced(data: bytes) -> None:
            await studio.traces.save(part.stem, data)
            self.report.traces_made += 1
            telemetry.MIX_PARTS.labels("trace", "made").inc()

        async def made(grains: int) -> None:
            self._made[part.name] = await studio.layers.publish(self._run, identity, sha256, file)
            self.report.layers_made += 1
            self.report.grains += grains
            telemetry.MIX_PARTS.labels("layer", "made").inc()

        trace = await studio.traces.read(part.stem)
        if trace is not None:
            self.report.traces_reused += 1
            telemetry.MIX_PARTS.labels("trace", "reused").inc()
        spec = grains_pb2.RenderSpec(
            sample_rate=shape.sample_rate,
            channels=shape.channels,
            frames=shape.frames,
            library_sha256=library["content_sha256"],
            library_bytes=library["size_bytes"],
            settings=part.settings,
            group=f"{self._run.id}/{self._run.attempt}",
        )
        notes = trace or (await self._stem(part), part.shape)
        return NewLayer(shape, studio.grains, self._run.priority, spec, read, notes, file, traced, made)

    async def _stem(self, part: _Part) -> Path:
        path = self._folder / part.name
        try:
            await self._studio.objects.fetch(part.stem["object_key"], path)
        except ObjectMissing as error:
            # So that whoever prepares the project has it made again.
            await self._studio.pool.execute("DELETE FROM stems WHERE object_key = $1", part.stem["object_key"])
            raise _no_stem(part.name) from error
        return path


def _no_stem(name: str) -> JobFailure:
    return JobFailure("PROJECT_NOT_READY", f"there are no {name} of the track", retryable=True)


def _style_deleted(style: UUID) -> JobFailure:
    return JobFailure("STYLE_DELETED", f"styles/{style} was deleted")


def _style_not_ready(style: UUID) -> JobFailure:
    return JobFailure("STYLE_NOT_READY", f"styles/{style} is not cut into grains", retryable=True)
