"""The streams of one mix, from stored stems to the mix.

    stem ────────────────────────────────────────────────▶ mix ─▶
    stem ─▶ trace (or stored) ═▶ render ─┬─ layer ───────▶  │
    stored layer ────────────────────────┼───────────────▶  │
                                         └▶ layer's file

Each is read at its own pace, none far ahead of the others, but for the notes (═▶): they are found as fast as they can
be, so that they are there for the next mix even if this one is given up. Level is brought to what is asked for by
hearing the mix twice: layers that the first time has made are stored then.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from contrafact.engine.v1 import grains_pb2, mixer_pb2
from contrafact.v1 import job_pb2

from servers.grains.rendering import RENDER_VERSION
from servers.grains.trace import TRACE_VERSION
from servers.media.blocks import Block
from servers.media.decode import decode
from servers.mixer.placing import placements
from servers.orchestrator.engines.grains import Grains
from servers.orchestrator.engines.mixer import Mixer
from servers.orchestrator.mixes import layers, traces
from servers.orchestrator.mixes.config import gain_db, heard
from servers.orchestrator.pipelines.growing import GrowingFile, Shape
from servers.platform.tasks import Streams, unzipped

_LOUDEST_DB = 120.0  # the most by which the mixer raises a sum
_TWICE = {
    job_pb2.NORMALIZATION_PEAK: mixer_pb2.NORMALIZATION_PEAK,
    job_pb2.NORMALIZATION_LUFS: mixer_pb2.NORMALIZATION_LUFS,
}


class Source(ABC):
    """Where an input of a mix comes from; ``shape`` is its."""

    shape: Shape

    @abstractmethod
    def blocks(self) -> AsyncGenerator[Block, None]:
        """Its audio, from the beginning; close it."""


@dataclass(frozen=True, slots=True)
class StoredStem(Source):
    """A stem as it is."""

    shape: Shape
    path: Path

    def blocks(self) -> AsyncGenerator[Block, None]:
        return decode(self.path)


@dataclass(frozen=True, slots=True)
class StoredLayer(Source):
    """A stem as it was played with a style before."""

    shape: Shape
    path: Path

    def blocks(self) -> AsyncGenerator[Block, None]:
        return layers.decoded(self.path)


@dataclass(slots=True)
class NewLayer(Source):
    """A stem that is played with a style, and stored so.

    Attributes:
        shape: Of the layer.
        grains, priority: What plays it.
        spec: How.
        library: Gives the bytes of the grain library.
        notes: What is played: the stem's stored trace, or its file and shape.
        file: Where the layer is written.
        traced: Called with the trace, as ``TraceWriter`` has it, if there was none.
        made: Called when the file is whole, with the grains that were played.
        begun: Whether somebody reads it.
    """

    shape: Shape
    grains: Grains
    priority: int
    spec: grains_pb2.RenderSpec
    library: Callable[[], Awaitable[bytes]]
    notes: grains_pb2.Trace | tuple[Path, Shape]
    file: GrowingFile
    traced: Callable[[bytes], Awaitable[None]]
    made: Callable[[int], Awaitable[None]]
    begun: bool = False

    async def blocks(self) -> AsyncGenerator[Block, None]:
        self.begun = True
        report = grains_pb2.RenderReport()
        async with Streams() as streams:
            if isinstance(self.notes, grains_pb2.Trace):
                batches: AsyncIterator[grains_pb2.NoteBatch] = await streams.opened(traces.batches(self.notes))
            else:
                traced = await streams.opened(self._traced(*self.notes))
                # There are fewer batches than frames: it never waits for the rendering.
                ahead = unzipped(traced, 1, bound=self.notes[1].frames)
                (batches,) = await streams.enter_async_context(ahead)
            rendering = self.grains.render(self.spec, self.library, batches, priority=self.priority)
            async for part in await streams.opened(rendering):
                if isinstance(part, Block):
                    block = layers.lowered(part)
                    await self.file.write(block)
                    yield layers.raised(block)
                elif part.version != RENDER_VERSION:
                    raise _other_version()
                else:
                    report = part
        await self.file.finish()
        await self.made(report.grains)

    async def _traced(self, path: Path, shape: Shape) -> AsyncGenerator[tuple[grains_pb2.NoteBatch], None]:
        spec = grains_pb2.TraceSpec(sample_rate=shape.sample_rate, channels=shape.channels, frames=shape.frames)
        trace = traces.TraceWriter(shape)
        async with Streams() as streams:
            stem = await streams.opened(decode(path))
            async for part in await streams.opened(self.grains.trace(spec, stem, priority=self.priority)):
                if isinstance(part, grains_pb2.NoteBatch):
                    trace.add(part)
                    yield (part,)
                elif part.version != TRACE_VERSION:
                    raise _other_version()
        await self.traced(trace.finish())


def _other_version() -> ConnectionError:
    """While servers are being replaced; it is tried again."""
    return ConnectionError("the grains engine is of another version")


class MixStream:
    """Makes one mix.

    Args:
        mixer, priority: What mixes it.
        config: Of the mix, with every default written down.
        shape: Of the mix.
        sources: Of the stems that are heard, by name.

    Attributes:
        shape: Of the mix.
        report: Of the mixer; known at the end.
    """

    def __init__(
        self, mixer: Mixer, priority: int, config: job_pb2.MixConfig, shape: Shape, sources: Mapping[str, Source]
    ) -> None:
        self.report = mixer_pb2.MixReport()
        self._mixer = mixer
        self._priority = priority
        self._config = config
        self.shape = shape
        self._sources = sources

    @property
    def heard_twice(self) -> bool:
        """Whether its level is known only when all of it was heard."""
        return self._config.normalization in _TWICE

    async def gain(self, progress: Callable[[float], Awaitable[None]]) -> float:
        """Hear all of it; the gain of the sum, in dB, that brings it to the level that is asked for.

        Args:
            progress: Called with the share of the inputs that was read.
        """
        spec = self._spec(0.0)
        spec.normalization, spec.target_lufs = _TWICE[self._config.normalization], self._config.target_lufs
        spec.measure_only = True
        spec.ClearField("true_peak_ceiling_db")
        async with aclosing(self._mixed(spec, progress)) as nothing:
            async for _ in nothing:
                pass
        return max(-_LOUDEST_DB, min(self.report.gain_db, _LOUDEST_DB))

    def blocks(self, gain: float) -> AsyncGenerator[Block, None]:
        """The mix, its sum raised by ``gain`` dB, in order; close it."""
        return self._mixed(self._spec(gain))

    async def _mixed(
        self, spec: mixer_pb2.MixSpec, progress: Callable[[float], Awaitable[None]] | None = None
    ) -> AsyncGenerator[Block, None]:
        read = dict.fromkeys(self._sources, 0.0)
        self._group(spec)

        async def counted(name: str, blocks: AsyncGenerator[Block, None]) -> AsyncGenerator[Block, None]:
            async for block in blocks:
                yield block
                read[name] = block.end / self._sources[name].shape.frames
                if progress is not None:
                    await progress(sum(read.values()) / len(read))

        async with Streams() as streams:
            inputs = {}
            for name, source in self._sources.items():
                blocks = await streams.opened(source.blocks())
                inputs[name] = await streams.opened(counted(name, blocks))
            async for part in await streams.opened(self._mixer.mix(spec, inputs, priority=self._priority)):
                if isinstance(part, Block):
                    yield part
                else:
                    self.report = part
            # What a layer has beyond the end of the mix, where another mix may need it.
            for name, source in self._sources.items():
                if isinstance(source, NewLayer) and source.begun:
                    async for _ in inputs[name]:
                        pass

    def _group(self, spec: mixer_pb2.MixSpec) -> None:
        """Tell the layers that are to be played how many they are: those that are heard in the mix."""
        inputs = zip(self._sources.values(), placements(spec), strict=True)
        new = [source for source, placement in inputs if isinstance(source, NewLayer) and placement.needed]
        for layer in new:
            layer.spec.group_size = len(new)

    def _spec(self, gain: float) -> mixer_pb2.MixSpec:
        config, rate = self._config, self.shape.sample_rate
        spec = mixer_pb2.MixSpec(sample_rate=rate, channels=self.shape.channels, frames=self.shape.frames, gain_db=gain)
        if config.normalization in (job_pb2.NORMALIZATION_LIMIT, job_pb2.NORMALIZATION_LUFS):
            spec.true_peak_ceiling_db = config.true_peak_db
        parts = heard(config)
        for name, source in self._sources.items():
            part = parts[name]
            spec.inputs.add(
                name=name,
                gain_db=gain_db(part),
                pan=part.pan,
                fade_in_frames=round(part.fade_in_seconds * rate),
                fade_out_frames=round(part.fade_out_seconds * rate),
                offset=round(part.offset_seconds * rate),
                sample_rate=source.shape.sample_rate,
                channels=source.shape.channels,
                frames=source.shape.frames,
            )
        return spec
