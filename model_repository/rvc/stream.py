"""A stream through one voice: blocks in, converted blocks out, exactly as long, never more than a few chunks behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from .chunks import HOP, Audio, Chunk, Converted, Cutter, Joiner, Params, is_silent, silence
from .engine import Engine
from .loudness import LoudnessMatch
from .voice import Voice


class Stream:
    """Converts mono audio as it arrives, in aligned mode.

    Whatever the sizes of the blocks, the result is the same. Its length is ``round(n_in * rate_out / rate_in)``.

    Args:
        engine, voice: the models.
        params: of the conversion.
        rate: samples a second of what is pushed.
        rate_out: of the result; 0: the voice's.
        rms_mix_rate: 0 (loudness of the input) .. 1 (of the voice).
        batch: chunks that are converted at once, if so many are there; more is faster on a GPU.
    """

    def __init__(
        self,
        engine: Engine,
        voice: Voice,
        params: Params,
        rate: int,
        rate_out: int = 0,
        rms_mix_rate: float = 0.25,
        batch: int = 1,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch is {batch}, must be at least 1")
        self._engine, self._voice, self._batch = engine, voice, batch
        self._cutter = Cutter(rate, engine.geometry, params)
        self._joiner = Joiner(rate, voice.rate, rate_out or voice.rate, engine.geometry)
        self._loudness = LoudnessMatch(voice.samples, rms_mix_rate)
        self._phase = 0.0

    def push(self, block: Audio) -> Audio:
        """Take a block (n,) of any length and give what is ready, perhaps nothing."""
        return self._run(self._cutter.push(block), None)

    def finish(self) -> Audio:
        """Give the rest. The stream takes no more."""
        return self._run(self._cutter.push(np.zeros(0, np.float32), last=True), self._cutter.pushed)

    def _run(self, chunks: list[Chunk], pushed: int | None) -> Audio:
        g, parts = self._engine.geometry, [np.zeros(0, np.float32)]
        core = slice(g.before * HOP, (g.before + g.core) * HOP)
        for start in range(0, len(chunks), self._batch):
            batch = chunks[start : start + self._batch]
            for chunk, made in zip(batch, self._convert(batch), strict=True):
                joined = self._joiner.push(made.audio)
                parts.append(self._loudness.push(chunk.audio[core], joined))
        if pushed is not None:
            none = np.zeros(0, np.float32)
            parts.append(self._loudness.push(none, none, last=True))
        return self._joiner.send(np.concatenate(parts), pushed)

    def _convert(self, batch: list[Chunk]) -> list[Converted]:
        """Silent chunks do not go through the model; the phase goes on behind them where it was."""
        loud = [replace(c, phase=None) for c in batch if not is_silent(c)]
        if loud:
            loud[0] = replace(loud[0], phase=self._phase)
        answers = iter(self._engine.convert(self._voice, loud) if loud else ())
        made = []
        for chunk in batch:
            silent = is_silent(chunk)
            one = silence(self._engine.geometry, self._voice.rate, self._phase) if silent else next(answers)
            self._phase = one.phase
            made.append(one)
        return made


def convert(
    blocks: Iterable[Audio],
    engine: Engine,
    voice: Voice,
    params: Params = Params(),  # noqa: B008 - it is frozen
    *,
    rate: int,
    rate_out: int = 0,
    rms_mix_rate: float = 0.25,
    batch: int = 1,
) -> Iterator[Audio]:
    """Converted audio of ``blocks``, as it becomes ready; arguments as of `Stream`."""
    stream = Stream(engine, voice, params, rate, rate_out, rms_mix_rate, batch)
    for block in blocks:
        if len(part := stream.push(block)):
            yield part
    yield stream.finish()
