"""Many streams for many voices through the voice pool at once, and what they saw of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np

from model_repository.rvc.chunks import DEFAULT, HOP, RATE, Params
from servers.inference.conversion import Converter
from servers.inference.triton import Answer, Question, Region, Triton, TritonError
from servers.inference.voices import VoiceFiles, VoiceModel
from servers.media.blocks import Block
from servers.platform.settings import Settings
from servers.storage import keys
from servers.storage.objects import ObjectStore

TONE = 0.3 * np.sin(2 * np.pi * 440 / RATE * np.arange(4 * DEFAULT.core * HOP)).astype(np.float32)
_SETTLE_SECONDS = 60.0


@dataclass(slots=True)
class Seen:
    """One request: when it was first sent, how often it was told that the voice is loading, seconds to its answer."""

    began: float
    refusals: int = 0
    seconds: float | None = None


class Watched(Triton):
    """A client of Triton that remembers what became of its requests for voices, by their names, in ``seen``."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.seen: dict[str, Seen] = {}

    async def infer(
        self, question: Question, *, region: Region | None = None, priority: int, timeout: float, request_id: str
    ) -> Answer:
        """As of Triton."""
        if "action" in question.parameters or "voice" not in question.parameters:
            return await super().infer(
                question, region=region, priority=priority, timeout=timeout, request_id=request_id
            )
        seen = self.seen.setdefault(request_id, Seen(time.perf_counter()))
        try:
            answer = await super().infer(
                question, region=region, priority=priority, timeout=timeout, request_id=request_id
            )
        except TritonError as error:
            seen.refusals += error.message.startswith("VOICE_LOADING:")
            raise
        seen.seconds = time.perf_counter() - seen.began
        return answer


async def shelve(objects: ObjectStore, data: bytes) -> VoiceFiles:
    """Store a voice's file as an import would."""
    voice, digest = uuid4(), hashlib.sha256(data).hexdigest()
    await objects.put(keys.voice_weights(voice, digest), data)
    return VoiceFiles(voice, digest, "")


async def shelve_gains(objects: ObjectStore, count: int) -> list[tuple[VoiceFiles, float]]:
    """So many voices of the fake model, each with a gain that no other has."""
    gains = [0.2 + 0.01 * number for number in range(count)]
    return [(await shelve(objects, json.dumps({"rate": 40_000, "gain": gain}).encode()), gain) for gain in gains]


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream of 1 to 4 chunks for the voice of that index."""

    voice: int
    chunks: int


def popular(voices: int, streams: int, seed: int, longest: int = 4) -> list[Stream]:
    """Streams for random voices, the k-th most popular of which is asked for 1/k as often as the first (Zipf)."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, voices + 1)
    chosen = random.choice(voices, streams, p=weights / weights.sum())
    return [
        Stream(int(voice), int(chunks))
        for voice, chunks in zip(chosen, random.integers(1, longest + 1, streams), strict=True)
    ]


async def drive(
    converter: Converter,
    model: VoiceModel,
    voices: Sequence[tuple[VoiceFiles, float]],
    streams: Sequence[Stream],
    *,
    at_once: int,
    name: str,
) -> list[str]:
    """Convert the streams, so many at once, each as a cover does: warm the voice, then convert.

    Returns:
        What went wrong, one line for each stream that failed or did not sound like its voice.
    """
    waiting = iter(enumerate(streams))
    failures: list[str] = []

    async def client() -> None:
        for number, stream in waiting:
            files, gain = voices[stream.voice]
            with suppress(TritonError):
                await model.warm(files)
            try:
                await _convert(converter, files, gain, stream.chunks, f"{name}/{number}")
            except Exception as error:
                failures.append(f"{name}/{number}: {type(error).__name__}: {error}")

    await asyncio.gather(*(client() for _ in range(at_once)))
    return failures


async def _convert(converter: Converter, files: VoiceFiles, gain: float, chunks: int, request_id: str) -> None:
    given = TONE[: chunks * DEFAULT.core * HOP]
    parts = [np.zeros(0, np.float32)]
    async for block in converter.convert(
        _one(given), files, Params(), voice_rate=40_000, rate=RATE, rms_mix=1.0, priority=2, request_id=request_id
    ):
        parts.append(block.samples[0])
    made = np.concatenate(parts)
    if len(made) != len(given):
        raise AssertionError(f"{len(given)} frames became {len(made)}")
    inside = slice(RATE // 10, -RATE // 10)
    heard = float(made[inside].std() / given[inside].std())
    if abs(heard - gain) > 0.004:  # voices are 0.01 apart
        raise AssertionError(f"another voice answered: its gain is {heard:.3f}, not {gain:.3f}")


async def _one(samples: Any) -> AsyncIterator[Block]:
    yield Block(samples[np.newaxis], RATE, 0)


async def settled(model: VoiceModel) -> dict[str, Any]:
    """The pool's report, once nothing is loading."""
    async with asyncio.timeout(_SETTLE_SECONDS):
        while True:
            with suppress(TritonError):
                report = await model.report()
                if all(voice["state"] == "WARM" for voice in report["voices"]):
                    return report
            await asyncio.sleep(0.02)


def disagreements(before: dict[str, Any], after: dict[str, Any], answered: int) -> list[str]:
    """Where the pool's counters contradict each other, or the number of requests that it ``answered`` between."""
    grown = {name: after["counters"][name] - before["counters"][name] for name in after["counters"]}
    warm = len(after["voices"]) - len(before["voices"])
    left = grown["evicted"] + grown["expired"]
    problems = {
        f"{grown['inserted']} inserted, but {left} left and {warm} more are warm": grown["inserted"] != left + warm,
        # Each voice that was loaded was used for the first time once: nobody asks for one and stays away.
        f"{answered} answered, but {grown['reused']} reused and {grown['inserted']} inserted": (
            answered != grown["reused"] + grown["inserted"]
        ),
        f"{grown['failed']} failed to load": grown["failed"] != 0,
        f"{len(after['voices'])} warm, capacity {after['capacity']}": len(after["voices"]) > after["capacity"],
    }
    return [text for text, wrong in problems.items() if wrong]
