"""Conversion of a voice as a stream of blocks: cut into chunks, infer, join; in memory are a few chunks.

The chunks of one stream follow each other, because each begins with the phase in which the one before ended; those of
many streams meet in Triton, where those of the same voice share a batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_repository.rvc.chunks import HOP, Chunk, Converted, Cutter, Geometry, Joiner, Params, is_silent, silence
from model_repository.rvc.live import LiveChunk
from model_repository.rvc.loudness import LoudnessMatch
from servers.inference.asking import Asker
from servers.inference.keeper import ModelKeeper
from servers.inference.triton import Answer, Question, Triton, TritonError
from servers.inference.voices import VoiceFiles
from servers.media.blocks import Block
from servers.platform.settings import Settings

T = TypeVar("T")

LARGEST_RATE = 48_000  # of a voice
_ASK_AGAIN_SECONDS = 0.05  # while a voice is loading; it doubles up to
_ASK_AGAIN_AT_MOST = 1.0
OTHERS = ("sung", "next_phase", "rate")
_LOADING = "VOICE_LOADING"
_STORE_AWAY = "VOICE_STORE"


class VoiceUnavailable(Exception):
    """The voice cannot be used. ``reason``: VOICE_NOT_FOUND, VOICE_REFUSED, VOICE_STORE or VOICE_LOADING."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Part:
    """What the model made of one chunk, and the voice's frames per second."""

    made: Converted
    rate: int


class Converter:
    """Converts streams with the voices of one model on Triton; any number at once."""

    def __init__(self, triton: Triton, keeper: ModelKeeper, settings: Settings) -> None:
        self._triton = triton
        self._keeper = keeper
        self._asker = Asker(triton, keeper, settings)
        self._geometry: Geometry | None = None
        self._patience = settings.model_load_timeout_seconds
        self._live_patience = settings.live_idle_seconds

    async def convert(
        self,
        blocks: AsyncIterator[Block],
        voice: VoiceFiles,
        params: Params,
        *,
        voice_rate: int,
        rate: int,
        rms_mix: float,
        priority: int,
        request_id: str,
    ) -> AsyncGenerator[Block, None]:
        """Convert a stream of mono blocks; frame k of the result is frame k of what was given.

        Args:
            blocks: [1, n], in order, all at ``rate``. Closing them is the caller's business.
            voice: Whose files the model fetches if it does not have them.
            params: Of the conversion.
            voice_rate: Frames per second of the voice.
            rate: Frames per second of what is given and of the result.
            rms_mix: 0: the loudness contour of what is given, 1: of the voice.
            priority: 1 overtakes 2 between chunks.
            request_id: Names this stream in Triton's log.

        Yields:
            Mono blocks, together exactly as long as what was given.

        Raises:
            InferenceFailed: The model failed again and again.
            ModelUnavailable: It could not be loaded for a long time.
            VoiceUnavailable: There is no such voice, or it cannot be loaded.
        """
        geometry = await self.geometry()
        cutter = Cutter(rate, geometry, params)
        joining = _Joining(rate, voice_rate, geometry, rms_mix)
        phase, start = 0.0, 0
        async for block in _and_none(blocks):
            last = block is None
            audio = np.zeros(0, np.float32) if block is None else block.samples[0]
            for chunk in await asyncio.to_thread(cutter.push, audio, last):
                if is_silent(chunk):  # the model would take as long for it as for singing
                    made = silence(geometry, voice_rate, phase)
                else:
                    made = await self._convert(chunk, phase, voice, priority, f"{request_id}/{chunk.first}")
                phase = made.phase
                await asyncio.to_thread(joining.push, chunk, made)
            ready = await asyncio.to_thread(joining.take, cutter.pushed if last else None)
            if ready.size:
                yield Block(ready[np.newaxis], rate, start)
                start += ready.size

    async def geometry(self) -> Geometry:
        """Sizes of the chunks that the model takes; ModelUnavailable if it cannot be asked for a long time."""
        while self._geometry is None:
            await self._keeper.wait()
            try:
                given = await self._triton.parameters(self._asker.model)
            except TritonError:  # it is just being loaded again
                await self._keeper.wait(check=True)
            else:
                sizes = {name: int(given[name]) for name in ("core", "before", "after", "fade") if name in given}
                self._geometry = Geometry(**sizes)
        return self._geometry

    async def pitch(
        self, audio: NDArray[np.float32], method: str, *, priority: int, request_id: str
    ) -> NDArray[np.float32]:
        """The f0 of a singer in Hz per 10 ms, 0 where unvoiced; ``audio``: mono at 16 kHz, at most 60 s."""
        question = self._question(audio, {"action": "pitch", "method": method})
        return await self._ask(question, lambda answer: answer.others["sung"].copy(), None, priority, request_id)

    async def live(self, chunk: LiveChunk, voice: VoiceFiles, *, priority: int, request_id: str) -> Part:
        """Convert one window of a live stream; errors as of ``convert``, but sooner: somebody listens."""
        parameters = {**_parameters(chunk.params, voice, priority), "action": "live"}
        parameters |= {name: getattr(chunk, name) for name in ("first", "skip", "length", "advance")}
        question = self._question(chunk.audio, parameters, chunk.phase, chunk.f0)
        return await self._ask(question, _part, None, priority, request_id, patience=self._live_patience)

    async def _convert(
        self, chunk: Chunk, phase: float, voice: VoiceFiles, priority: int, request_id: str
    ) -> Converted:
        parameters = {**_parameters(chunk.params, voice, priority), "first": chunk.first}
        question = self._question(chunk.audio, parameters, phase)
        most = 4 * (len(chunk.audio) // HOP) * (LARGEST_RATE // 100)
        return (await self._ask(question, _part, most, priority, request_id)).made

    def _question(
        self,
        audio: NDArray[np.float32],
        parameters: dict[str, Any],
        phase: float | None = None,
        f0: NDArray[np.float64] | None = None,
    ) -> Question:
        inline: dict[str, NDArray[Any]] = {}
        if phase is not None:
            inline["phase"] = np.array([phase], np.float64)
        if f0 is not None:
            inline["f0"] = f0.astype(np.float32)
        return Question(
            self._asker.model, "audio", audio, "converted", inline=inline, others=OTHERS, parameters=parameters
        )

    async def _ask(
        self,
        question: Question,
        take: Callable[[Answer], T],
        output_bytes: int | None,
        priority: int,
        request_id: str,
        *,
        patience: float | None = None,
    ) -> T:
        """As ``Asker.ask``, patient while the voice is loading or its files cannot be reached."""
        give_up = time.monotonic() + (self._patience if patience is None else patience)
        pause = _ASK_AGAIN_SECONDS
        while True:
            try:
                return await self._asker.ask(
                    question,
                    take,
                    output_bytes=output_bytes,
                    priority=priority,
                    request_id=request_id,
                    final=lambda error: error.message.startswith("VOICE_"),
                )
            except TritonError as error:
                reason, _, message = error.message.partition(":")
                if reason not in (_LOADING, _STORE_AWAY) or time.monotonic() > give_up:
                    raise VoiceUnavailable(reason, message.strip()) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, _ASK_AGAIN_AT_MOST)


def _parameters(params: Params, voice: VoiceFiles, priority: int) -> dict[str, Any]:
    # Whether a person waits decides whose cold voice is loaded first, too.
    return {**asdict(params), **voice.parameters, "interactive": priority == 1}


def _part(answer: Answer) -> Part:
    f0 = answer.others["sung"].astype(np.float64)
    made = Converted(answer.samples.copy(), float(answer.others["next_phase"][0]), f0)
    return Part(made, int(answer.others["rate"][0]))


class _Joining:
    """Converted chunks to one stream, with the loudness contour that was asked for."""

    def __init__(self, given: int, made: int, geometry: Geometry, rms_mix: float) -> None:
        self._core = slice(geometry.before * HOP, (geometry.before + geometry.core) * HOP)
        self._joiner = Joiner(given, made, given, geometry)
        self._loudness = LoudnessMatch(made // 100, rms_mix)
        self._matched: list[NDArray[np.float32]] = []

    def push(self, chunk: Chunk, made: Converted) -> None:
        """Take a chunk and what became of it."""
        self._matched.append(self._loudness.push(chunk.audio[self._core], self._joiner.push(made.audio)))

    def take(self, pushed: int | None) -> NDArray[np.float32]:
        """What is ready; all, when it is known how many frames were given in all."""
        if pushed is not None:
            none = np.zeros(0, np.float32)
            self._matched.append(self._loudness.push(none, none, last=True))
        ready = np.concatenate([np.zeros(0, np.float32), *self._matched])
        self._matched.clear()
        return self._joiner.send(ready, pushed) if ready.size or pushed is not None else ready


async def _and_none(blocks: AsyncIterator[Block]) -> AsyncGenerator[Block | None, None]:
    """The blocks, and then None."""
    async for block in blocks:
        yield block
    yield None
