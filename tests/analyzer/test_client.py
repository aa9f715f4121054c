"""The orchestrator's client of the analyzer, against the real server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import grpc
import numpy as np
import pytest
from contrafact.engine.v1.analyzer_pb2 import AnalyzeReport, AnalyzeResponse, AnalyzeSpec, SegmentEmbeddings

from servers.analyzer.analysis import Feature, Found
from servers.analyzer.messages import responses
from servers.analyzer.onsets import Onsets
from servers.analyzer.server import MAX_ANALYSES, MAX_BACKGROUND
from servers.analyzer.unknown import Unknown
from servers.local.ports import free_port
from servers.media.blocks import Block
from servers.orchestrator.engines.analyzer import Analyzer, AnalyzerError
from servers.platform.settings import Settings
from tests.analyzer.streams import ALL, RATE, Answer, Samples, band, expected, spec_of
from tests.engine_process import AnalyzerProcess
from tests.mixer.test_client import tasks
from tests.mixer.test_server import eventually

SECOND = band(1)
LONG = AnalyzeSpec(sample_rate=RATE, channels=2, frames=10**6 * RATE // 10)


async def blocks(samples: Samples, sizes: Sequence[int] = (RATE,)) -> AsyncGenerator[Block, None]:
    """``samples`` in blocks of ``sizes``, again and again."""
    start, turn = 0, 0
    while start < samples.shape[1]:
        part = samples[:, start : start + sizes[turn % len(sizes)]]
        yield Block(part, RATE, start)
        start, turn = start + part.shape[1], turn + 1


async def endless() -> AsyncIterator[Block]:
    for second in range(10**5):
        yield Block(SECOND, RATE, second * RATE)


async def stuck() -> AsyncIterator[Block]:
    """One block, then nothing."""
    yield Block(SECOND, RATE, 0)
    await asyncio.Event().wait()


async def failing() -> AsyncIterator[Block]:
    yield Block(SECOND, RATE, 0)
    raise LookupError("no more")


async def collected(analysis: AsyncGenerator[AnalyzeResponse, None]) -> Answer:
    """All of it."""
    answer = Answer([])
    async with aclosing(analysis):
        async for response in analysis:
            answer.add(response)
    return answer


@pytest.mark.parametrize("priority", [1, 2])
async def test_an_analysis(analyzer: AnalyzerProcess, priority: int) -> None:
    samples, before = band(8), tasks()
    async with Analyzer(analyzer.settings) as client:
        sources = (blocks(samples, [100, 70_000, 1]), blocks(samples, [8 * RATE]))
        answers = [await collected(client.analyze(spec_of(samples), each, priority=priority)) for each in sources]
        assert tasks() <= before
    there = expected(samples)
    for answer in answers:
        assert (answer.features, answer.waveform, answer.segments) == (there.features, there.waveform, there.segments)
        assert answer.report is not None
        assert sorted(answer.order) == sorted(ALL.values())
    assert await eventually(lambda: analyzer.active() == 0)


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_nothing_is_left_of_an_analysis_that_ends_early(analyzer: AnalyzerProcess, how: str) -> None:
    before = tasks()
    async with Analyzer(analyzer.settings) as client:
        analysis = client.analyze(LONG, endless())
        assert (await anext(analysis)).HasField("progress")
        if how == "cancelled":

            async def rest() -> None:
                async for _ in analysis:
                    pass

            task = asyncio.create_task(rest())
            await asyncio.sleep(0.1)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await analysis.aclose()
        assert tasks() <= before
    assert await eventually(lambda: analyzer.active() == 0)


async def test_the_error_of_the_input_is_raised_as_it_is(analyzer: AnalyzerProcess) -> None:
    async with Analyzer(analyzer.settings) as client:
        with pytest.raises(LookupError, match="no more"):
            await collected(client.analyze(LONG, failing()))
    assert await eventually(lambda: analyzer.active() == 0)


async def test_blocks_that_are_not_the_spec(analyzer: AnalyzerProcess) -> None:
    async with Analyzer(analyzer.settings) as client:
        with pytest.raises(ValueError, match="ended after 44100 of 88200 frames"):
            await collected(client.analyze(spec_of(band(2)), blocks(SECOND)))
        with pytest.raises(ValueError, match="not what was announced"):
            await collected(client.analyze(spec_of(SECOND, rate=48_000), blocks(SECOND)))
        with pytest.raises(ValueError, match="not what was announced"):
            await collected(client.analyze(spec_of(SECOND[:1]), blocks(SECOND)))


@pytest.mark.parametrize(
    ("samples", "method", "reason"),
    [
        (SECOND, "crepe", "INVALID_FIELD"),
        (SECOND + np.nan, "", "INVALID_SAMPLES"),
        (band(3), "", "TOO_MANY_FRAMES"),
    ],
)
async def test_refusals_have_their_reason(
    analyzer: AnalyzerProcess, samples: Samples, method: str, reason: str
) -> None:
    async with Analyzer(analyzer.settings) as client:
        with pytest.raises(AnalyzerError) as refusal:
            await collected(client.analyze(spec_of(SECOND, pitch_method=method), blocks(samples)))
    assert (refusal.value.status, refusal.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert refusal.value.message


@pytest.mark.parametrize("source", [endless, stuck])
async def test_the_server_dies(spare_analyzer: AnalyzerProcess, source: type) -> None:
    before = tasks()
    async with Analyzer(spare_analyzer.settings) as client:
        analysis = client.analyze(LONG, source())
        assert (await anext(analysis)).HasField("progress")
        os.kill(spare_analyzer.child.pid, signal.SIGKILL)
        with pytest.raises(AnalyzerError) as failure:
            async for _ in analysis:
                pass
        assert failure.value.status is grpc.StatusCode.UNAVAILABLE
        assert tasks() <= before
        # It comes back, and the same client finds it.
        await spare_analyzer.child.stop()
        await spare_analyzer.child.start()
        await collected(client.analyze(spec_of(SECOND), blocks(SECOND)))


async def test_a_server_that_hangs_is_noticed(spare_analyzer: AnalyzerProcess) -> None:
    async with Analyzer(spare_analyzer.settings, idle_seconds=5.0) as client:
        analysis = client.analyze(LONG, endless())
        assert (await anext(analysis)).HasField("progress")
        os.kill(spare_analyzer.child.pid, signal.SIGSTOP)
        try:
            with pytest.raises(AnalyzerError) as failure:
                async for _ in analysis:
                    pass
            assert failure.value.reason == "ANALYZER_STALLED"
            with pytest.raises(AnalyzerError) as failure:
                await collected(client.analyze(spec_of(SECOND), blocks(SECOND)))
            assert failure.value.reason == "ANALYZER_STALLED"
        finally:
            os.kill(spare_analyzer.child.pid, signal.SIGCONT)


async def test_neither_a_slow_input_nor_long_work_is_a_failure(analyzer: AnalyzerProcess) -> None:
    async def slow() -> AsyncIterator[Block]:
        async for block in blocks(SECOND):
            await asyncio.sleep(7.0)
            yield block

    async with Analyzer(analyzer.settings, idle_seconds=5.0) as client:
        await collected(client.analyze(spec_of(SECOND), slow()))
        long, pitch = band(60, channels=1), next(number for number, name in ALL.items() if name == "PITCH")
        # Many at once, none of which knows anything for seconds.
        await asyncio.gather(
            *(collected(client.analyze(spec_of(long, features=[pitch]), blocks(long))) for _ in range(6))
        )


async def test_no_server() -> None:
    settings = Settings(analyzer_url=f"127.0.0.1:{free_port()}")
    async with Analyzer(settings, idle_seconds=0.5) as client:
        with pytest.raises(AnalyzerError) as failure:
            await collected(client.analyze(spec_of(SECOND), blocks(SECOND)))
    assert failure.value.reason == "ANALYZER_STALLED"


def changed(analyzer: AnalyzerProcess, **values: object) -> Settings:
    """Settings by which a client finds ``analyzer``."""
    return analyzer.settings.model_copy(update=values)


@asynccontextmanager
async def under_way(client: Analyzer, priority: int = 1) -> AsyncIterator[None]:
    """An analysis that has begun and goes no further."""
    async with aclosing(client.analyze(LONG, stuck(), priority=priority)) as analysis:
        assert (await anext(analysis)).HasField("progress")
        yield


@asynccontextmanager
async def full(analyzer: AnalyzerProcess) -> AsyncIterator[AsyncExitStack]:
    """The analyzer has no room until something that is on the stack is closed."""
    async with (
        Analyzer(changed(analyzer, analyses_in_flight=MAX_ANALYSES)) as client,
        AsyncExitStack() as stack,
    ):
        for place in range(MAX_ANALYSES):
            await stack.enter_async_context(under_way(client, 2 if place < MAX_BACKGROUND else 1))
        async with AsyncExitStack() as first:
            first.push_async_exit(stack.pop_all())
            yield first


async def test_an_analysis_waits_until_a_full_analyzer_has_room(analyzer: AnalyzerProcess) -> None:
    before = analyzer.refusals()
    async with full(analyzer) as others, Analyzer(analyzer.settings) as client:
        analysis = asyncio.create_task(collected(client.analyze(spec_of(SECOND), blocks(SECOND, [1000]))))
        assert await eventually(lambda: analyzer.refusals() >= before + 2)
        assert not analysis.done()
        await others.aclose()
        # Nothing is lost of an input that had been begun.
        assert (await analysis).waveform == expected(SECOND).waveform
    assert await eventually(lambda: analyzer.active() == 0)


async def test_nobody_waits_for_ever_for_a_full_analyzer(analyzer: AnalyzerProcess) -> None:
    async with full(analyzer), Analyzer(changed(analyzer, analyzer_wait_seconds=0.5)) as client:
        with pytest.raises(AnalyzerError) as refusal:
            await collected(client.analyze(spec_of(SECOND), blocks(SECOND)))
    assert (refusal.value.status, refusal.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_ANALYSES")


async def test_of_those_who_wait_a_person_is_next(analyzer: AnalyzerProcess) -> None:
    order = []

    async def analyze(client: Analyzer, name: str, priority: int) -> None:
        await collected(client.analyze(spec_of(SECOND), blocks(SECOND), priority=priority))
        order.append(name)

    async with Analyzer(changed(analyzer, analyses_in_flight=1)) as client:
        async with under_way(client):
            waiting = [asyncio.create_task(analyze(client, *who)) for who in (("scan", 2), ("person", 1))]
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
    assert order == ["person", "scan"]


HALF_A_DAY = Onsets(300_000, 1.0, tuple(float(second) for second in range(300_000)))


async def received(monkeypatch: pytest.MonkeyPatch, sent: Sequence[AnalyzeResponse]) -> list[AnalyzeResponse]:
    """What the client makes of what an analyzer sent."""

    async def exchange(*_: object) -> AsyncGenerator[AnalyzeResponse, None]:
        for response in sent:
            yield response

    async with Analyzer(Settings()) as client:
        monkeypatch.setattr(client, "_exchange", exchange)
        return [response async for response in client.analyze(LONG, endless())]


async def test_parts_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [*responses(Found(Feature.ONSETS, HALF_A_DAY)), AnalyzeResponse(report=AnalyzeReport())]
    onsets, report = await received(monkeypatch, sent)
    assert len(sent) > 3
    assert tuple(onsets.features.onsets.seconds) == HALF_A_DAY.seconds
    assert not onsets.more
    assert report.HasField("report")


@pytest.mark.parametrize(
    "between",
    [
        AnalyzeResponse(progress=0.5),
        AnalyzeResponse(segments=SegmentEmbeddings(dimensions=1)),
        AnalyzeResponse(report=AnalyzeReport()),
        *responses(Found(Feature.KEY, Unknown("NO_TONALITY", "It has none."))),
    ],
    ids=["progress", "segments", "report", "another feature"],
)
async def test_parts_that_do_not_follow_one_another_are_an_error(
    monkeypatch: pytest.MonkeyPatch, between: AnalyzeResponse
) -> None:
    first, *others = responses(Found(Feature.ONSETS, HALF_A_DAY))
    with pytest.raises(AnalyzerError, match="did not come in a row"):
        await received(monkeypatch, [first, between, *others, AnalyzeResponse(report=AnalyzeReport())])
