"""Calls under way, of work that is known beforehand: signs of life, and how they end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing
from threading import Event
from typing import Any

import pytest
from contrafact.engine.v1 import grains_pb2 as pb

from servers.grains import running
from servers.grains.building import CannotCut
from servers.grains.library import Library
from servers.grains.notes import Notes, from_messages, no_notes
from servers.grains.running import Building, Following, Shared
from servers.platform.errors import ApiError
from servers.platform.turns import Turns
from tests.grains.streams import audio_requests, notes_of, sound, spec_of

SAMPLES = sound(1)


@pytest.fixture
def shared() -> Iterator[Shared]:
    turns = Turns("running", 2)
    yield Shared(turns, 0)
    turns.close()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life come soon."""
    monkeypatch.setattr(running, "SIGN_SECONDS", 0.01)


async def sent(requests: Iterable[Any]) -> AsyncIterator[Any]:
    for request in itertools.islice(requests, 1, None):
        yield request


def building(shared: Shared) -> Any:
    """A sound of which a library is built."""
    spec = spec_of(SAMPLES, pb.BuildSpec)
    return Building(spec, 2, shared).responses(sent(audio_requests(pb.BuildRequest, spec, SAMPLES)))


async def test_progress_is_told_and_work_ends_with_who_listens(monkeypatch: pytest.MonkeyPatch, shared: Shared) -> None:
    steps, ended = 0, Event()

    def build(samples: object, rate: int, cut: object, progress: Callable[[float], None]) -> Library:
        nonlocal steps
        try:
            while True:
                steps += 1
                progress(1 - 1 / steps)
        finally:
            ended.set()

    monkeypatch.setattr(running, "build", build)
    told: list[float] = []
    async with asyncio.timeout(30), aclosing(building(shared)) as responses:
        while len(told) < 5 or told[-1] == 0:
            told.append((await anext(responses)).progress)
    assert ended.is_set()
    assert told[0] == 0
    assert told == sorted(told)
    assert told[-1] < 1
    made = steps
    await asyncio.sleep(0.05)
    assert steps == made


async def test_what_cannot_be_cut(monkeypatch: pytest.MonkeyPatch, shared: Shared) -> None:
    def build(samples: object, rate: int, cut: object, progress: Callable[[float], None]) -> Library:
        raise CannotCut("TOO_MANY_GRAINS", "it has more")

    monkeypatch.setattr(running, "build", build)
    with pytest.raises(ApiError, match="it has more") as refusal:
        _ = [response async for response in building(shared)]
    assert refusal.value.reason == "TOO_MANY_GRAINS"


class Slow:
    """Finds a note in each step, which takes as long as many signs of life."""

    def __init__(self, rate: int, channels: int, frames: int) -> None:
        self.until = 0

    def process(self, samples: object) -> Notes:
        self.until += 100
        Event().wait(0.1)
        return from_messages([pb.Note(start=self.until - 1, frames=1)])

    def finish(self) -> Notes:
        return no_notes()


async def test_a_sign_of_life_does_not_run_ahead_of_notes(monkeypatch: pytest.MonkeyPatch, shared: Shared) -> None:
    monkeypatch.setattr(running, "Tracing", Slow)
    spec = spec_of(SAMPLES)
    requests = sent(audio_requests(pb.TraceRequest, spec, SAMPLES))
    answers = [response async for response in Following(spec, 2, shared).responses(requests)]
    signs = [each for each in answers if each.HasField("notes") and not each.notes.notes]
    notes, _ = notes_of(answers, spec.frames)  # which are in order
    assert len(notes) > 1
    assert len(signs) > len(notes)
