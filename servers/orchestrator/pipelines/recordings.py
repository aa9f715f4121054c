"""What jobs work on: the recording of their track, fetched for as long as they need it, and as streams of blocks."""

from __future__ import annotations

import math
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from servers.inference.separation import CHANNELS, GEOMETRY, SAMPLE_RATE, SOURCES, Level, Separated, Separator
from servers.media.blocks import Block
from servers.media.decode import decode
from servers.media.resample import resample, resampled_frames
from servers.orchestrator.jobs.runner import JobFailure, JobRun
from servers.platform import telemetry
from servers.platform.settings import Settings
from servers.platform.tasks import Streams
from servers.storage.database import Pool, Row
from servers.storage.objects import ObjectMissing, ObjectStore

FETCHED = 0.01  # share of the whole work that is done then
SETTLING_FRAMES = 1 << 15  # of the model's: where a resampler begins makes no difference so long after

Samples = NDArray[np.float32]


class Recordings:
    """Finds and fetches what jobs work on."""

    def __init__(self, pool: Pool, objects: ObjectStore, settings: Settings) -> None:
        self._pool = pool
        self._objects = objects
        self._folder = settings.temporary_folder

    async def of(self, run: JobRun) -> Row:
        """The recording of the job's track, and the track's ``display_name``."""
        row = await self._pool.fetchrow(
            "SELECT r.*, t.display_name FROM recordings r JOIN tracks t USING (sha256) WHERE t.id = $1",
            run.row["track_id"],
        )
        if row is None:
            raise JobFailure("TRACK_DELETED", "the track was deleted")
        return row

    @asynccontextmanager
    async def fetched(self, run: JobRun, recording: Row, *more: str) -> AsyncIterator[list[Path]]:
        """The stage FETCH: files with the recording and with those of the objects ``more`` that there still are.

        They are there for as long as the context lasts.
        """
        with tempfile.TemporaryDirectory(prefix="contrafact-", dir=self._folder, ignore_cleanup_errors=True) as folder:
            await run.stage("FETCH")
            paths: list[Path] = []
            for number, key in enumerate((recording["object_key"], *more)):
                path = Path(folder) / str(number)
                try:
                    await self._objects.fetch(key, path)
                except ObjectMissing as error:
                    if not paths:
                        raise JobFailure("TRACK_DELETED", "the track's bytes are gone") from error
                    telemetry.log().warning("a stored stem has no bytes", key=key)
                    continue
                paths.append(path)
            await run.progress(FETCHED)
            yield paths


def channels(recording: Row) -> int:
    """Channels of what is made of a recording: mono stays mono, all else becomes stereo."""
    return min(int(recording["channels"]), CHANNELS)


def first_segment(frame: int, rate: int) -> int:
    """Number of the segment with which a separation can begin to make the frames from ``frame`` at ``rate`` Hz on.

    At other rates than the model's it begins a little earlier, and where segment and frame begin together, so that
    the stems come out of the resampler as if it had begun at zero.
    """
    needed = frame * SAMPLE_RATE // rate
    if rate != SAMPLE_RATE:
        needed = max(0, needed - SETTLING_FRAMES)
    whole = SAMPLE_RATE // math.gcd(GEOMETRY.stride * rate, SAMPLE_RATE)
    return needed // GEOMETRY.stride // whole * whole


async def separated(
    separator: Separator, run: JobRun, recording: Row, source: Path, *, start: int = 0
) -> AsyncGenerator[dict[str, Block], None]:
    """The sources of a recording by name, as blocks of its own rate and channels, in order, from frame ``start`` on."""
    rate, frames = recording["sample_rate"], recording["frames"]
    if start >= frames:
        return
    level = Level(recording["mean"], recording["std"])
    model_frames = max(1, resampled_frames(frames, rate, SAMPLE_RATE))
    first = first_segment(start, rate)
    made = frames - first * GEOMETRY.stride * rate // SAMPLE_RATE
    async with Streams() as streams:
        decoded = await streams.opened(decode(source))
        track = await streams.opened(_stereo(await streams.opened(resample(decoded, SAMPLE_RATE, frames=model_frames))))
        name = f"{run.id}/{run.attempt}"
        segments = await streams.opened(
            separator.separate(track, model_frames, level, priority=run.priority, request_id=name, first=first)
        )
        blocks = await streams.opened(resample(await streams.opened(_as_blocks(segments)), rate, frames=made))
        async for block in blocks:
            if block.end > start:
                wanted = _from(block, start)
                yield {source: _part(wanted, index, channels(recording)) for index, source in enumerate(SOURCES)}


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


async def _as_blocks(segments: AsyncIterator[Separated]) -> AsyncGenerator[Block, None]:
    """All channels of all sources side by side, so that one resampler serves them."""
    async for part in segments:
        yield Block(part.samples.reshape(len(SOURCES) * CHANNELS, -1), SAMPLE_RATE, part.start)


def _from(block: Block, start: int) -> Block:
    """The frames of ``block`` from position ``start`` on."""
    skip = max(0, start - block.start)
    return Block(block.samples[:, skip:], block.sample_rate, block.start + skip)


def _part(block: Block, index: int, wanted: int) -> Block:
    """The source ``index`` of a block of all sources, with ``wanted`` channels."""
    samples = block.samples[index * CHANNELS : (index + 1) * CHANNELS]
    return Block(samples if wanted == CHANNELS else samples.mean(axis=0, keepdims=True), block.sample_rate, block.start)
