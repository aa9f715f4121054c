"""The octave of a cover: by how much the singer must be shifted to be where the voice is at home."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import numpy as np
import soxr

from model_repository.rvc.register import octaves
from servers.inference.conversion import Converter
from servers.media.blocks import Block

Row = tuple[Block, ...]

ENOUGH_SECONDS = 5.0  # of singing, to know the singer's pitch
AT_MOST_SECONDS = 120.0  # of the track are listened to for it, and no more than
AT_MOST_FRAMES = 6_000_000  # which are kept meanwhile, with those of the rest of the track
_AT_ONCE_SECONDS = 5.0
_QUIET = 0.003  # -50 dBFS: what a separation leaves where nobody sings
_MODEL_RATE = 16_000


class Listening:
    """Listens to the beginning of a cover's streams, and gives them back from the beginning.

    Args:
        converter: Finds the pitch.
        method: By which it does.
        priority, request_id: Of that inference.
    """

    def __init__(self, converter: Converter, method: str, *, priority: int, request_id: str) -> None:
        self._converter = converter
        self._method = method
        self._priority = priority
        self._request_id = request_id
        self._heard: list[Row] = []

    async def shift(self, rows: AsyncIterator[Row], voice_hz: float) -> int | None:
        """Semitones, a multiple of 12, from the singer's median pitch to ``voice_hz``; None: nobody sings.

        Reads ``rows``, whose first column are the vocals in mono, until it has heard ENOUGH_SECONDS of singing, or
        AT_MOST_SECONDS or AT_MOST_FRAMES in all.
        """
        sung: list[float] = []
        waiting: list[Block] = []
        async for row in rows:
            self._heard.append(row)
            waiting.append(row[0])
            most = min(AT_MOST_SECONDS * row[0].sample_rate, AT_MOST_FRAMES)
            if sum(block.frames for block in waiting) >= _AT_ONCE_SECONDS * row[0].sample_rate:
                sung += await self._pitches(waiting)
                waiting = []
            if len(sung) >= 100 * ENOUGH_SECONDS or row[0].end >= most:
                break
        else:
            sung += await self._pitches(waiting)
        return octaves(float(np.median(sung)), voice_hz) if sung else None

    async def _pitches(self, blocks: list[Block]) -> list[float]:
        """Hz of the voiced 10 ms in these blocks."""
        audio = np.concatenate([block.samples[0] for block in blocks]) if blocks else np.zeros(0, np.float32)
        if not audio.size or np.abs(audio).max() < _QUIET:
            return []
        audio = soxr.resample(audio, blocks[0].sample_rate, _MODEL_RATE)[: 60 * _MODEL_RATE]
        name = f"{self._request_id}/pitch"
        f0 = await self._converter.pitch(audio, self._method, priority=self._priority, request_id=name)
        return [float(hertz) for hertz in f0[f0 > 0]]

    async def from_the_beginning(self, rows: AsyncIterator[Row]) -> AsyncGenerator[Row, None]:
        """What was heard, and then the rest."""
        while self._heard:
            yield self._heard.pop(0)
        async for row in rows:
            yield row
