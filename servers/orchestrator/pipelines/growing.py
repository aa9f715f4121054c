"""Results that can be listened to while they are being made, and made further by another attempt.

What an attempt has stored of a lossless file is a checkpoint: a later attempt at the same work reads it with
``checkpoints``, writes it once more as its own, byte for byte, so that listeners just go on, and makes only the rest.
A lossy file can have a checkpoint beside it: a lossless file of pieces that nobody is told of.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from contrafact.v1 import audio_pb2, job_pb2
from numpy.typing import NDArray

from servers.media.blocks import Block
from servers.media.encode import AudioFormat, Encoder
from servers.media.errors import MediaError
from servers.media.unfinished import LOSSLESS, UnfinishedFile
from servers.orchestrator.jobs.messages import STEMS
from servers.orchestrator.jobs.runner import JobRun
from servers.orchestrator.pipelines.recordings import channels
from servers.platform import telemetry
from servers.storage import keys
from servers.storage.database import Pool, Row
from servers.storage.objects import ObjectStore
from servers.storage.outages import patiently

# Encoders and containers hold back less than this: frames before it can be decoded for certain.
CODEC_DELAY_FRAMES = 16_384
PATIENCE_SECONDS = 20.0  # with a store that is away, before the attempt is given up
_STEPS = np.float32(1 << 23)  # of a lossless file: 24 bits

Samples = NDArray[np.float32]


def in_steps(samples: Samples) -> Samples:
    """``samples`` in the precision in which lossless files store them, so that all attempts see the same."""
    return np.asarray(np.rint(samples * _STEPS) / _STEPS, np.float32)


def as_stored(samples: Samples) -> Samples:
    """What a lossless file, or a checkpoint, gives back for ``samples``."""
    return np.asarray(np.clip(in_steps(samples), -1, 1 - 1 / _STEPS), np.float32)


@dataclass(frozen=True, slots=True)
class Shape:
    """How much audio a file is to have: its rate in Hz, channels, frames."""

    sample_rate: int
    channels: int
    frames: int

    @classmethod
    def of(cls, recording: Row) -> Self:
        """As much as ``recording``, with as many channels as results of it have."""
        return cls(recording["sample_rate"], channels(recording), recording["frames"])


class GrowingFiles:
    """Makes them; lossy ones get a checkpoint if the recording is longer than ``checkpoint_seconds``."""

    def __init__(self, pool: Pool, objects: ObjectStore, *, checkpoint_seconds: float = np.inf) -> None:
        self._pool = pool
        self._objects = objects
        self._checkpoint_seconds = checkpoint_seconds

    def new(
        self,
        run: JobRun,
        like: Row | Shape,
        name: str,
        audio_format: AudioFormat,
        tags: Mapping[str, str] | None = None,
        *,
        announced: bool = True,
    ) -> GrowingFile:
        """One of that shape, or that of results of a recording; nobody listens to one that is not ``announced``."""
        shape = like if isinstance(like, Shape) else Shape.of(like)

        def output(part: str, part_format: AudioFormat) -> _Output:
            encoder = Encoder(
                part_format,
                sample_rate=shape.sample_rate,
                channels=shape.channels,
                frames=shape.frames,
                tags=tags,
            )
            return _Output(run, self._pool, self._objects, part, encoder, announced=announced and part == name)

        checkpoint = None
        long = shape.frames > self._checkpoint_seconds * shape.sample_rate
        if audio_format not in LOSSLESS and long:
            checkpoint = output(f"{name}.checkpoint", AudioFormat.FLAC)
        return GrowingFile(shape, output(name, audio_format), checkpoint)


class GrowingFile:
    """Encodes one result and stores its bytes as small objects, each announced as soon as it is stored.

    Put one after the other, the objects are the finished file, byte for byte.

    Attributes:
        name: That of a stem, "cover", "mix" or "layer.{stem}".
        frames: How many it has, those included that the encoder holds back.
        counted: How many peak and clipped are of: some more while it is replayed.
        peak: The highest magnitude of their samples.
        clipped: How many of those are beyond ±1.0, which the format cannot hold (0 for WAV). Exactly +1.0 does not
            count, though FLAC stores it one step of 2^-23 lower.
    """

    def __init__(self, shape: Shape, output: _Output, checkpoint: _Output | None = None) -> None:
        self.name = output.name
        self.encoder = output.encoder
        self.format = output.encoder.format
        self.frames = self.counted = self.clipped = 0
        self.peak = 0.0
        self._shape = shape
        self._output = output
        self._checkpoint = checkpoint

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._output.size

    @property
    def sha256(self) -> str:
        """SHA-256 of all bytes so far."""
        return self._output.digest.hexdigest()

    @property
    def resumable(self) -> str | None:
        """Name of the file that a later attempt can go on from; None: there is none."""
        if self._checkpoint is not None:
            return self._checkpoint.name
        return self.name if self.format in LOSSLESS else None

    async def write(self, block: Block) -> None:
        """Encode what ``block`` adds to the file, which may be nothing, and store what bytes come of it."""
        if block.end > self.frames:
            await self._add(block.samples[:, self.frames - block.start :])

    async def replay(self, pieces: AsyncIterator[tuple[Row, bytes]]) -> AsyncGenerator[Block, None]:
        """Begin the file with what an earlier attempt stored of the one that is ``resumable``; gives that audio.

        Closing ``pieces`` is the caller's business.
        """
        stored = (self._checkpoint or self._output).encoder
        unfinished = UnfinishedFile(
            stored.format,
            sample_rate=stored.output_rate,
            channels=self._shape.channels,
            frames=stored.output_frames,
        )
        try:
            async for row, data in pieces:
                samples = await asyncio.to_thread(unfinished.decode, data)
                # Of more than was decoded, and of what it was before it was clipped.
                self.peak, self.clipped, self.counted = row["peak"], row["clipped"], row["frames"]
                if samples.size:
                    yield await self._add(samples)
            samples = await asyncio.to_thread(unfinished.finish)
            if samples.size:
                yield await self._add(samples)
        except MediaError as error:  # what came before it is sound
            telemetry.log().warning("a checkpoint is damaged", stem=self.name, error=str(error))

    async def _add(self, samples: Samples) -> Block:
        block = Block(samples, self._shape.sample_rate, self.frames)
        await asyncio.to_thread(self._count, block)
        self.frames = block.end
        if self._checkpoint is not None:
            # Both encode the same: so it makes no difference whether it comes out of a checkpoint.
            samples = await asyncio.to_thread(as_stored, samples)
            await self._checkpoint.write(samples, self)
        await self._output.write(samples, self)
        return block

    def _count(self, block: Block) -> None:
        levels = np.abs(block.samples[:, max(0, self.counted - block.start) :])
        if levels.size:
            self.counted = block.end
            self.peak = max(self.peak, float(levels.max()))
            if self.format is not AudioFormat.WAV:
                self.clipped += int(np.count_nonzero(levels > 1))

    async def finish(self) -> None:
        """Store the last bytes."""
        for output in (self._checkpoint, self._output):
            if output is not None:
                await output.finish(self)

    async def put(self, place: str) -> None:
        """Put the finished file into its place."""
        await self._output.put(place)


class _Output:
    """The bytes of a growing file, or of its checkpoint."""

    def __init__(
        self, run: JobRun, pool: Pool, objects: ObjectStore, name: str, encoder: Encoder, *, announced: bool
    ) -> None:
        self.name = name
        self.encoder = encoder
        self.size = 0
        self.digest = hashlib.sha256()
        self._pieces: list[str] = []
        self._run = run
        self._pool = pool
        self._objects = objects
        self._announced = announced

    async def write(self, samples: Samples, file: GrowingFile) -> None:
        data = await asyncio.to_thread(self.encoder.encode, samples)
        await self._store(data, max(0, file.frames - CODEC_DELAY_FRAMES), file)

    async def finish(self, file: GrowingFile) -> None:
        data = await asyncio.to_thread(self.encoder.finish)
        await self._store(data, file.frames, file)

    async def put(self, place: str) -> None:
        await self._objects.put_concatenated(place, self._pieces, self.size, self.encoder.format.media_type)

    async def _store(self, data: bytes, frames_ready: int, file: GrowingFile) -> None:
        if not data:
            return
        key = keys.live_piece(self._run.id, self._run.attempt, self.name, self.size)
        row = (self._run.id, self._run.attempt, self.name, self.size, len(data), frames_ready)

        async def store() -> None:
            # The row first: an object without one would never be found again, a row without object is waited for.
            await self._pool.execute(
                """INSERT INTO live_pieces (job_id, attempt, stem, start, size_bytes, frames_ready,
                                            frames, peak, clipped)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING""",
                *row,
                file.counted,
                file.peak,
                file.clipped,
            )
            await self._objects.put(key, data)

        await patiently(store, PATIENCE_SECONDS)
        if self._announced:
            piece = job_pb2.LivePiece(
                stem=STEMS.get(self.name, audio_pb2.STEM_KIND_UNSPECIFIED),
                offset=self.size,
                size_bytes=len(data),
                frames_ready=frames_ready,
                attempt=self._run.attempt,
            )
            await self._run.publish(job_pb2.JobEvent(piece=piece))
        self._pieces.append(key)
        self.size += len(data)
        self.digest.update(data)
