"""Results that can be listened to while they are being made."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping

import numpy as np
from contrafact.v1 import audio_pb2, job_pb2
from numpy.typing import NDArray

from servers.media.encode import AudioFormat, Encoder
from servers.orchestrator.jobs.messages import STEMS
from servers.orchestrator.jobs.runner import JobRun
from servers.orchestrator.pipelines.recordings import channels
from servers.storage import keys
from servers.storage.database import Pool, Row
from servers.storage.objects import ObjectStore

# Encoders and containers hold back less than this: frames before it can be decoded for certain.
CODEC_DELAY_FRAMES = 16_384


class GrowingFiles:
    """Makes them."""

    def __init__(self, pool: Pool, objects: ObjectStore) -> None:
        self._pool = pool
        self._objects = objects

    def new(
        self, run: JobRun, recording: Row, name: str, audio_format: AudioFormat, tags: Mapping[str, str] | None = None
    ) -> GrowingFile:
        """One as long as ``recording``, at its rate, with as many channels as results of it have."""
        encoder = Encoder(
            audio_format,
            sample_rate=recording["sample_rate"],
            channels=channels(recording),
            frames=recording["frames"],
            tags=tags,
        )
        return GrowingFile(run, self._pool, self._objects, name, audio_format, encoder)


class GrowingFile:
    """Encodes one result and stores its bytes as small objects, each announced as soon as it is stored.

    Put one after the other, the objects are the finished file, byte for byte. ``name`` is that of a stem, or "cover".
    """

    def __init__(
        self, run: JobRun, pool: Pool, objects: ObjectStore, name: str, audio_format: AudioFormat, encoder: Encoder
    ) -> None:
        self.name = name
        self.format = audio_format
        self.encoder = encoder
        self.size = 0
        self._pieces: list[str] = []
        self._digest = hashlib.sha256()
        self._frames = 0
        self._run = run
        self._pool = pool
        self._objects = objects

    @property
    def sha256(self) -> str:
        """SHA-256 of all bytes so far."""
        return self._digest.hexdigest()

    async def write(self, samples: NDArray[np.float32]) -> None:
        """Encode ``samples`` [channels, n] and store what bytes come of it."""
        self._frames += samples.shape[1]
        data = await asyncio.to_thread(self.encoder.encode, samples)
        await self._store(data, max(0, self._frames - CODEC_DELAY_FRAMES))

    async def finish(self) -> None:
        """Store the last bytes."""
        data = await asyncio.to_thread(self.encoder.finish)
        await self._store(data, self._frames)

    async def put(self, place: str) -> None:
        """Put the finished file into its place."""
        await self._objects.put_concatenated(place, self._pieces, self.size, self.format.media_type)

    async def _store(self, data: bytes, frames_ready: int) -> None:
        if not data:
            return
        key = keys.live_piece(self._run.id, self._run.attempt, self.name, self.size)
        # The row first: an object without one would never be found again, a row without object is waited for.
        await self._pool.execute(
            """INSERT INTO live_pieces (job_id, attempt, stem, start, size_bytes, frames_ready)
               VALUES ($1, $2, $3, $4, $5, $6)""",
            self._run.id,
            self._run.attempt,
            self.name,
            self.size,
            len(data),
            frames_ready,
        )
        await self._objects.put(key, data)
        piece = job_pb2.LivePiece(
            stem=STEMS.get(self.name, audio_pb2.STEM_KIND_UNSPECIFIED),
            offset=self.size,
            size_bytes=len(data),
            frames_ready=frames_ready,
            attempt=self._run.attempt,
        )
        await self._run.events.publish(self._run.id, job_pb2.JobEvent(piece=piece))
        self._pieces.append(key)
        self.size += len(data)
        self._digest.update(data)
