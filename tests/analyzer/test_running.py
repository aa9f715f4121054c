"""An analysis under way, of features that are known beforehand: in which order it answers, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from threading import Event

import numpy as np
import pytest
from contrafact.engine.v1.analyzer_pb2 import AnalyzeRequest as Request
from contrafact.engine.v1.analyzer_pb2 import AnalyzeResponse, AnalyzeSpec

from servers.analyzer import running
from servers.analyzer.analysis import Analysis, Feature, Found, Lane, Samples
from servers.analyzer.embedding import Embeddings
from servers.analyzer.pitch import Pitch
from servers.analyzer.running import Running
from servers.analyzer.unknown import Unknown
from servers.platform.turns import Turns
from tests.analyzer.streams import band, requests_of, spec_of

RATE = 8000
CONTOUR = np.arange(1, 250_001, dtype=np.float32)
PITCH = Found(Feature.PITCH, Pitch(200.0, 100.0, 300.0, 0.5, 0.2, CONTOUR, "swift-f0"))
EMBEDDINGS = Embeddings(np.zeros(512, np.float32), np.ones((8000, 512), np.float16), 10.0, 5.0, "model")


class Known(Lane):
    """Features whose results are known beforehand."""

    def __init__(self, *found: Found) -> None:
        super().__init__()
        self._found_before = found

    def process(self, samples: Samples) -> None:
        """Nothing is made of it."""

    def results(self) -> Iterator[Found]:
        return iter(self._found_before)


class Failing(Known):
    """Its step begins, fails when it is told to, and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = Event(), Event()

    def process(self, samples: Samples) -> None:
        self.begun.set()
        assert self.go_on.wait(100)
        raise ValueError("no result")


@pytest.fixture
def turns() -> Iterator[Turns]:
    made = Turns("analyzer", 3)
    yield made
    made.close()


def analysis_with(monkeypatch: pytest.MonkeyPatch, *others: Lane) -> None:
    """Let analyses have these lanes beside that of their waveform."""

    def made(spec: AnalyzeSpec) -> Analysis:
        analysis = Analysis(spec.sample_rate, spec.channels, spec.frames, [Feature.WAVEFORM])
        analysis.others = others
        return analysis

    monkeypatch.setattr(running, "_analysis", made)


async def sent(spec: AnalyzeSpec, samples: Samples) -> AsyncIterator[Request]:
    for request in list(requests_of(spec, samples))[1:]:
        yield request


def begun(turns: Turns) -> tuple[Running, AsyncIterator[Request]]:
    """An analysis of three seconds and a bit, and its requests."""
    samples = band(3.1, rate=RATE, channels=1)
    spec = spec_of(samples, rate=RATE)
    return Running(spec, 1, turns), sent(spec, samples)


async def test_parts_of_a_list_come_in_a_row(monkeypatch: pytest.MonkeyPatch, turns: Turns) -> None:
    """While another lane has more to say than who listens takes in."""
    analysis_with(monkeypatch, Known(Found(Feature.EMBEDDING, EMBEDDINGS)), Known(PITCH))
    analysis, requests = begun(turns)
    contour: list[float] = []
    last = AnalyzeResponse()
    async for response in analysis.responses(requests):
        await asyncio.sleep(0.02)
        assert not last.more or response.features.HasField("pitch")
        contour.extend(response.features.pitch.contour_hz)
        last = response
    assert last.HasField("report")
    np.testing.assert_array_equal(contour, CONTOUR)


async def test_an_error_that_nobody_waits_for_any_more_ends_it(monkeypatch: pytest.MonkeyPatch, turns: Turns) -> None:
    """Its step fails after who listened has left, and after more was known than waits to be sent."""
    failing = Failing()
    unknown = [Found(Feature.KEY, Unknown("NO_TONALITY", "It has none."))] * 20
    analysis_with(monkeypatch, failing, Known(*unknown))
    analysis, requests = begun(turns)
    async with aclosing(analysis.responses(requests)) as responses:
        async for response in responses:
            if response.HasField("features") and failing.begun.is_set():
                break
        asyncio.get_running_loop().call_later(0.05, failing.go_on.set)
        async with asyncio.timeout(100):
            await responses.aclose()


async def test_at_its_end_all_of_it_is_done(monkeypatch: pytest.MonkeyPatch, turns: Turns) -> None:
    analysis_with(monkeypatch, Known(PITCH), Known())
    analysis, requests = begun(turns)
    assert analysis.progress == 0
    async for _ in analysis.responses(requests):
        assert analysis.progress <= 1
    assert analysis.progress == 1
