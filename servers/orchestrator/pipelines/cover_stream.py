"""The streams of one cover, from its recording to the mix.

    decode ─▶ separate ─▶ vocals ─┬─▶ convert ─────▶ mix ─▶
       │         (or stored)      ├─ how loud? ─────▶ │
       └───── minus vocals ───────┴─ instrumental ──▶ │

Each is read at its own pace: what is not converted yet waits, at most half a minute of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from contrafact.engine.v1 import mixer_pb2
from contrafact.v1 import job_pb2

from servers.inference.conversion import Converter
from servers.inference.separation import Separator
from servers.media.blocks import Block
from servers.media.decode import decode
from servers.orchestrator.engines.mixer import Mixer
from servers.orchestrator.jobs.runner import JobRun
from servers.orchestrator.pipelines.checkpoints import resumed
from servers.orchestrator.pipelines.growing import GrowingFile, in_steps
from servers.orchestrator.pipelines.octave import Listening
from servers.orchestrator.pipelines.recordings import FrameReader, channels, separated
from servers.orchestrator.voices.parameters import model_parameters, pitch_method
from servers.orchestrator.voices.store import files_of
from servers.platform.tasks import Streams, unzipped
from servers.storage.database import Row

VOCALS, INSTRUMENTAL, SINGER = "vocals", "instrumental", "singer"  # inputs of the mix


@dataclass(frozen=True, slots=True)
class Engines:
    """What does the work."""

    separator: Separator
    converter: Converter
    mixer: Mixer


class CoverStream:
    """Makes one cover.

    Args:
        engines: What does the work.
        run: The job.
        spec: Of the cover, with every default written down.
        recording: Of the track.
        voice: A row of ``voices``.
        source: The recording's file.
        vocals: The file of its vocals, or where to write them when they are separated.
        begun: What an earlier attempt has stored of those; closing it is the caller's business.

    Attributes:
        separated: Set when the vocals are whole, long before the mix is.
        semitones: By how many the pitch is shifted; known when the first block has come.
        report: Of the mixer; known at the end.
    """

    def __init__(
        self,
        engines: Engines,
        run: JobRun,
        spec: job_pb2.CoverSpec,
        recording: Row,
        voice: Row,
        source: Path,
        vocals: Path | GrowingFile,
        begun: AsyncIterator[tuple[Row, bytes]],
    ) -> None:
        self.semitones = spec.conversion.semitones
        self.report = mixer_pb2.MixReport()
        self.separated = asyncio.Event()
        self._engines = engines
        self._run = run
        self._spec = spec
        self._recording = recording
        self._voice = voice
        self._source = source
        self._vocals = vocals
        self._begun = begun
        self._request_id = f"{run.id}/{run.attempt}"

    async def blocks(self) -> AsyncGenerator[Block, None]:
        """The mix, in order; close it."""
        async with Streams() as streams:
            rows = await streams.opened(self._rows(await streams.opened(self._vocals_blocks())))
            if self._spec.conversion.auto_octave:
                rows = await streams.opened(await self._shifted(rows))
            spec = self._mix_spec()
            columns = await streams.enter_async_context(unzipped(rows, len(spec.inputs)))
            inputs = dict(zip((given.name for given in spec.inputs), columns, strict=True))
            inputs[VOCALS] = await streams.opened(self._converted(inputs[VOCALS]))
            async for part in await streams.opened(self._engines.mixer.mix(spec, inputs, priority=self._run.priority)):
                if isinstance(part, Block):
                    yield part
                else:
                    self.report = part

    async def _vocals_blocks(self) -> AsyncGenerator[Block, None]:
        """The vocals in the precision in which they are stored, so that all attempts and later covers see the same."""
        async with aclosing(self._exact_vocals()) as blocks:
            async for block in blocks:
                yield Block(in_steps(block.samples), block.sample_rate, block.start)

    async def _exact_vocals(self) -> AsyncGenerator[Block, None]:
        if isinstance(self._vocals, Path):
            await self._run.stage("CONVERT")
            async with aclosing(decode(self._vocals)) as stored:
                async for block in stored:
                    yield block
            return
        await self._run.stage("SEPARATE")
        async with aclosing(self._vocals.replay(self._begun)) as stored:
            async for block in stored:
                yield block
        start = self._vocals.frames
        resumed(self._run, self._recording, start)
        parts = separated(self._engines.separator, self._run, self._recording, self._source, start=start)
        async with aclosing(parts) as blocks:
            async for sources in blocks:
                await self._vocals.write(sources["vocals"])
                yield sources["vocals"]
        await self._vocals.finish()
        self.separated.set()
        await self._run.stage("CONVERT")

    async def _rows(self, vocals: AsyncIterator[Block]) -> AsyncGenerator[tuple[Block, ...], None]:
        """Vocals in mono, the track without them and, if their loudness matters, the vocals as they are."""
        async with aclosing(decode(self._source)) as decoded:
            original = FrameReader(decoded)
            async for block in vocals:
                mono = Block(block.samples.mean(axis=0, keepdims=True), block.sample_rate, block.start)
                rest = await original.take(block.frames) - block.samples
                instrumental = Block(rest, block.sample_rate, block.start)
                yield (mono, instrumental, block) if self._spec.mix.match_loudness else (mono, instrumental)

    async def _shifted(self, rows: AsyncIterator[tuple[Block, ...]]) -> AsyncGenerator[tuple[Block, ...], None]:
        """The same rows, after the octave was found in their beginning."""
        method = pitch_method(self._spec.conversion)
        listening = Listening(self._engines.converter, method, priority=self._run.priority, request_id=self._request_id)
        shift = await listening.shift(rows, self._voice["pitch_median"])
        if shift is None:
            self._run.warnings.append("nobody was heard singing, so the octave was left as it is")
        self.semitones = float(shift or 0)
        return listening.from_the_beginning(rows)

    async def _converted(self, mono: AsyncIterator[Block]) -> AsyncGenerator[Block, None]:
        """The converted vocals, as wide as the track."""
        conversion = self._spec.conversion
        async with aclosing(
            self._engines.converter.convert(
                mono,
                files_of(self._voice),
                model_parameters(conversion, self.semitones),
                voice_rate=self._voice["sample_rate"],
                rate=self._recording["sample_rate"],
                rms_mix=conversion.rms_mix,
                priority=self._run.priority,
                request_id=self._request_id,
            )
        ) as blocks:
            async for block in blocks:
                wide = np.repeat(block.samples, channels(self._recording), axis=0)
                yield Block(wide, block.sample_rate, block.start)
        await self._run.stage("MIX")

    def _mix_spec(self) -> mixer_pb2.MixSpec:
        mix = self._spec.mix
        spec = mixer_pb2.MixSpec(
            sample_rate=self._recording["sample_rate"],
            channels=channels(self._recording),
            frames=self._recording["frames"],
            true_peak_ceiling_db=mix.true_peak_db,
        )
        spec.inputs.add(
            name=VOCALS, gain_db=mix.vocals_gain_db, loudness_reference=SINGER if mix.match_loudness else ""
        )
        spec.inputs.add(name=INSTRUMENTAL, gain_db=mix.instrumental_gain_db)
        if mix.match_loudness:
            spec.inputs.add(name=SINGER, reference_only=True)
        return spec
