"""The analyzer over gRPC, without our client: what it sends, what it refuses, what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import numpy as np
import pytest
from contrafact.engine.v1 import analyzer_pb2_grpc
from contrafact.engine.v1.analyzer_pb2 import AnalyzeBlock, AnalyzeRequest, AnalyzeSpec
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from servers.analyzer.server import MAX_ANALYSES, MAX_BACKGROUND
from servers.analyzer.version import ANALYZER
from tests.analyzer.streams import ALL, END, RATE, Answer, band, block, expected, requests_of, spec_of
from tests.engine_process import AnalyzerProcess
from tests.mixer.test_server import eventually

Code = grpc.StatusCode
BY_NAME = {name: number for number, name in ALL.items()}
SECOND = np.zeros((2, RATE), np.float32)


@pytest.fixture
async def channel(analyzer: AnalyzerProcess) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(analyzer.address) as made:
        yield made


async def analyzed(channel: grpc.aio.Channel, requests: Iterable[AnalyzeRequest]) -> Answer:
    """What comes back."""

    async def sent() -> AsyncIterator[AnalyzeRequest]:
        for request in requests:
            yield request

    call: Any = analyzer_pb2_grpc.AnalyzerServiceStub(channel).Analyze(sent(), timeout=250)
    answer = Answer([])
    async for response in call:
        answer.add(response)
    assert answer.report is not None
    return answer


async def refusal(
    analyzer: AnalyzerProcess, *requests: AnalyzeRequest
) -> tuple[grpc.StatusCode, str, list[str], dict[str, str]]:
    """Status, reason, fields at fault and facts of a refused analysis."""

    def attempt() -> Any:
        # grpc's asyncio API may lose what is answered while it sends.
        with grpc.insecure_channel(analyzer.address) as plain:
            stub: Any = analyzer_pb2_grpc.AnalyzerServiceStub(plain)
            with pytest.raises(grpc.RpcError) as refused:
                list(stub.Analyze(iter(requests), timeout=100))
            return refused.value

    error = await asyncio.to_thread(attempt)
    status = rpc_status.from_call(error)
    assert status is not None
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        for message in (info, bad):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    assert info.domain == "contrafact"
    return error.code(), info.reason, [each.field for each in bad.field_violations], dict(info.metadata)


@pytest.mark.parametrize("name", ["", "contrafact.engine.v1.AnalyzerService"])
async def test_health(channel: grpc.aio.Channel, name: str) -> None:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=60)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection(analyzer: AnalyzerProcess) -> None:
    with grpc.insecure_channel(analyzer.address) as plain:
        assert "contrafact.engine.v1.AnalyzerService" in ProtoReflectionDescriptorDatabase(plain).get_services()


@pytest.mark.parametrize("priority", [0, 1])
async def test_an_analysis_is_the_same_as_without_a_server(channel: grpc.aio.Channel, priority: int) -> None:
    samples = band(9.7)
    answer, there = (
        await analyzed(
            channel, requests_of(spec_of(samples, priority=priority), samples, [1, 70_000, 140_001, 300_000])
        ),
        expected(samples),
    )
    assert (answer.features, answer.waveform, answer.segments) == (there.features, there.waveform, there.segments)
    assert answer.order[:4] == ["WAVEFORM", "QUALITY", "LOUDNESS", "STEREO"]
    assert sorted(answer.order) == sorted(ALL.values())
    report = answer.report
    assert report is not None
    assert report.analyzer == ANALYZER
    assert set(report.cpu_seconds) == {*ALL.values(), "SHARED"}
    assert all(0 <= seconds < 60 for seconds in report.cpu_seconds.values())
    assert report.cpu_seconds["PITCH"] > 0


async def test_analyses_at_once_do_not_mix(channel: grpc.aio.Channel) -> None:
    inputs = [band(5, seed=seed, rate=rate) for seed, rate in ((1, 44_100), (2, 44_100), (3, 22_050))]
    rates = [44_100, 44_100, 22_050]
    answers = await asyncio.gather(
        *(
            analyzed(channel, requests_of(spec_of(samples, rate=rate), samples))
            for samples, rate in zip(inputs, rates, strict=True)
        )
    )
    for answer, samples, rate in zip(answers, inputs, rates, strict=True):
        assert answer.features == expected(samples, rate=rate).features


async def test_what_is_asked_for(channel: grpc.aio.Channel) -> None:
    samples = band(5, channels=1)
    for names in (["STEREO"], ["KEY", "WAVEFORM"], ["PITCH"]):
        answer = await analyzed(
            channel, requests_of(spec_of(samples, features=[BY_NAME[name] for name in names]), samples)
        )
        assert set(answer.order) == set(names) - {"STEREO"}  # which mono has none of
    tone = (0.5 * np.sin(2 * np.pi * 440 / RATE * np.arange(2 * RATE)))[None].astype(np.float32)
    spec = spec_of(tone, features=[BY_NAME["PITCH"]], pitch_method="pyin")
    answer = await analyzed(channel, requests_of(spec, tone))
    assert answer.features.pitch.method == "pyin"
    assert answer.features.pitch.median_hz == pytest.approx(440, rel=0.01)


@pytest.mark.parametrize("rate", [1000, 8000, 192_000])
async def test_other_rates(channel: grpc.aio.Channel, rate: int) -> None:
    samples = band(3, rate=rate)
    answer = await analyzed(channel, requests_of(spec_of(samples, rate=rate), samples))
    assert answer.features == expected(samples, rate=rate).features


async def test_one_sample(channel: grpc.aio.Channel) -> None:
    samples = np.ones((1, 1), np.float32)
    answer = await analyzed(channel, requests_of(spec_of(samples, rate=1000), samples))
    assert sorted(answer.order) == sorted(set(ALL.values()) - {"STEREO"})


SPEC = AnalyzeSpec(sample_rate=RATE, channels=2, frames=100 * RATE)
GOOD = AnalyzeRequest(spec=SPEC)


def spec_with(**changes: Any) -> AnalyzeRequest:
    values: dict[str, Any] = {"sample_rate": RATE, "channels": 2, "frames": 9}
    return AnalyzeRequest(spec=AnalyzeSpec(**values | changes))


@pytest.mark.parametrize(
    ("request_message", "fields"),
    [
        (spec_with(sample_rate=999), ["spec.sample_rate"]),
        (spec_with(sample_rate=384_001), ["spec.sample_rate"]),
        (spec_with(channels=3), ["spec.channels"]),
        (spec_with(channels=8), ["spec.channels"]),
        (spec_with(channels=0, frames=0), ["spec.channels", "spec.frames"]),
        (spec_with(frames=48 * 3600 * RATE + 1), ["spec"]),
        (spec_with(features=[1, 1]), ["spec.features"]),
        (spec_with(features=[0]), ["spec.features[0]"]),
        (spec_with(features=[10]), ["spec.features[0]"]),
        (spec_with(priority=3), ["spec.priority"]),
        (spec_with(pitch_method="crepe"), ["spec.pitch_method"]),
        (AnalyzeRequest(), ["request"]),
    ],
)
async def test_bad_specs_are_refused(
    analyzer: AnalyzerProcess, request_message: AnalyzeRequest, fields: list[str]
) -> None:
    code, reason, found, _ = await refusal(analyzer, request_message)
    assert (code, reason, found) == (Code.INVALID_ARGUMENT, "INVALID_FIELD", fields)


@pytest.mark.parametrize(
    ("requests", "reason", "fields", "facts"),
    [
        ([], "SPEC_MISSING", [], {}),
        ([END], "SPEC_MISSING", [], {}),
        ([block(0, SECOND), GOOD], "SPEC_MISSING", [], {}),
        ([GOOD, GOOD], "SPEC_REPEATED", [], {}),
        ([GOOD], "STREAM_BROKEN", [], {}),
        ([GOOD, block(0, SECOND)], "STREAM_BROKEN", [], {}),
        ([GOOD, block(0, SECOND[:, :0])], "INVALID_FIELD", ["block.samples"], {}),
        ([GOOD, block(7, SECOND)], "WRONG_START", ["block.start"], {"expected": "0"}),
        ([GOOD, *[block(0, SECOND)] * 2], "WRONG_START", ["block.start"], {"expected": f"{RATE}"}),
        ([GOOD, AnalyzeRequest(block=AnalyzeBlock(samples=bytes(12)))], "WRONG_SIZE", ["block.samples"], {}),
        ([GOOD, AnalyzeRequest(block=AnalyzeBlock(samples=bytes(13)))], "WRONG_SIZE", ["block.samples"], {}),
        ([GOOD, block(0, SECOND * np.nan)], "INVALID_SAMPLES", ["block.samples"], {}),
        ([GOOD, block(0, SECOND + np.inf)], "INVALID_SAMPLES", ["block.samples"], {}),
        ([GOOD, block(0, SECOND - 1_000_001)], "INVALID_SAMPLES", ["block.samples"], {}),
        ([spec_with(), block(0, SECOND[:, :10])], "TOO_MANY_FRAMES", ["block.samples"], {}),
        ([spec_with(), block(0, SECOND[:, :8]), END], "TOO_FEW_FRAMES", [], {"received": "8"}),
        ([spec_with(), END], "TOO_FEW_FRAMES", [], {"received": "0"}),
    ],
)
async def test_bad_streams_are_refused(
    analyzer: AnalyzerProcess, requests: list[AnalyzeRequest], reason: str, fields: list[str], facts: dict[str, str]
) -> None:
    code, found_reason, found_fields, found_facts = await refusal(analyzer, *requests)
    assert (code, found_reason, found_fields, found_facts) == (Code.INVALID_ARGUMENT, reason, fields, facts)


async def begun(channel: grpc.aio.Channel, spec: AnalyzeSpec = SPEC, **options: Any) -> Any:
    """A call that the server has taken on."""
    stub: Any = analyzer_pb2_grpc.AnalyzerServiceStub(channel)
    call = stub.Analyze(**options)
    await call.write(AnalyzeRequest(spec=spec))
    assert (await call.read()).progress == 0
    return call


def spec_of_priority(priority: int) -> AnalyzeSpec:
    return AnalyzeSpec(sample_rate=RATE, channels=2, frames=100 * RATE, priority=priority)


async def test_there_is_a_bound_on_analyses(analyzer: AnalyzerProcess, channel: grpc.aio.Channel) -> None:
    scan, person = spec_of_priority(2), spec_of_priority(1)
    calls = [await begun(channel, scan) for _ in range(MAX_BACKGROUND)]
    code, reason, _, _ = await refusal(analyzer, AnalyzeRequest(spec=scan))
    assert (code, reason) == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_ANALYSES")
    calls += [await begun(channel, person) for _ in range(MAX_ANALYSES - MAX_BACKGROUND)]
    code, reason, _, _ = await refusal(analyzer, AnalyzeRequest(spec=person))
    assert (code, reason) == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_ANALYSES")
    for call in calls:
        call.cancel()
    assert await eventually(lambda: analyzer.active() == 0)
    (await begun(channel, scan)).cancel()
    assert await eventually(lambda: analyzer.active() == 0)


@pytest.mark.parametrize("how", ["cancelled", "past its deadline"])
async def test_a_call_that_ends_early_leaves_nothing(
    analyzer: AnalyzerProcess, channel: grpc.aio.Channel, how: str
) -> None:
    call = await begun(channel, timeout=8.0 if how == "past its deadline" else None)
    await call.write(block(0, SECOND))
    assert analyzer.active() == 1
    if how == "cancelled":
        call.cancel()
    assert await eventually(lambda: analyzer.active() == 0)


async def test_cancelling_stops_the_work(analyzer: AnalyzerProcess, channel: grpc.aio.Channel) -> None:
    """All of it was sent; of the work on its pitch no step is made after the call is gone."""
    samples = band(30, rate=8000, channels=1)
    spec = spec_of(samples, rate=8000, features=[BY_NAME["PITCH"]], pitch_method="pyin", priority=1)
    call = await begun(channel, spec)
    for request in list(requests_of(spec, samples))[1:]:
        await call.write(request)
    assert (await call.read()).HasField("progress")
    call.cancel()
    assert await eventually(lambda: analyzer.active() == 0)
    for name in ("contrafact_slots_held", "contrafact_slots_waiting"):
        values = analyzer.metrics(name)
        assert values
        assert not any(values.values())


async def test_a_person_passes_a_queue(spare_analyzer: AnalyzerProcess) -> None:
    """On one thread: four scans are under way, each of which takes sixty times as long."""
    ended: list[str] = []
    long, short = band(300, rate=16_000, channels=1), band(5, rate=16_000, channels=1)

    async def analyze(channel: grpc.aio.Channel, name: str, samples: np.ndarray, priority: int) -> None:
        await analyzed(channel, requests_of(spec_of(samples, rate=16_000, priority=priority), samples))
        ended.append(name)

    async with grpc.aio.insecure_channel(spare_analyzer.address) as channel:
        scans = [asyncio.create_task(analyze(channel, "scan", long, 2)) for _ in range(4)]
        assert await eventually(lambda: spare_analyzer.active() == 4)
        await analyze(channel, "person", short, 1)
        assert ended == ["person"]
        for scan in scans:
            scan.cancel()
        await asyncio.gather(*scans, return_exceptions=True)


async def test_the_waveform_does_not_wait_for_the_pitch(spare_analyzer: AnalyzerProcess) -> None:
    """All of it is taken in, and its waveform told, while pYIN works on its beginning, on one thread."""
    samples = band(12, rate=8000, channels=1)
    async with grpc.aio.insecure_channel(spare_analyzer.address) as channel:
        features = [BY_NAME["WAVEFORM"], BY_NAME["PITCH"]]
        spec = spec_of(samples, rate=8000, features=features, pitch_method="pyin", priority=1)
        call = await begun(channel, spec)
        for request in list(requests_of(spec, samples))[1:]:
            await call.write(request)
        progress: list[tuple[int, float]] = []
        order: list[str] = []
        while not (response := await call.read()).HasField("report"):
            if response.HasField("progress"):
                progress.append((len(order), response.progress))
            if response.HasField("features"):
                order += [field.name for field, _ in response.features.ListFields()]
        assert order == ["waveform", "pitch"]
        assert progress == sorted(progress)
        # After the waveform at least half of it was done, and then more.
        assert all(share >= 0.5 for place, share in progress if place)


async def test_a_flood_is_not_taken_in(analyzer: AnalyzerProcess, channel: grpc.aio.Channel) -> None:
    """Of an hour sent in the background faster than it is analysed, the server holds what waits for the pitch."""
    spec = AnalyzeSpec(
        sample_rate=RATE, channels=2, frames=3600 * RATE, features=[BY_NAME["PITCH"]], pitch_method="pyin"
    )
    call, sent, done, before = await begun(channel, spec, timeout=100), 0, 0.0, analyzer.resident_bytes()

    async def write() -> None:
        nonlocal sent
        for second in range(3600):
            await call.write(block(second * RATE, SECOND + np.float32(0.1)))
            sent += 1

    async def read() -> None:
        nonlocal done
        while (response := await call.read()).HasField("progress"):
            done = response.progress

    tasks = [asyncio.create_task(write()), asyncio.create_task(read())]
    for _ in range(8):
        await asyncio.sleep(1.0)
        assert sent - 3600 * done < 300
    assert sent > 20
    assert analyzer.resident_bytes() - before < 100_000_000
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    call.cancel()
    assert await eventually(lambda: analyzer.active() == 0)


async def test_drain(spare_analyzer: AnalyzerProcess) -> None:
    samples = band(1)
    async with grpc.aio.insecure_channel(spare_analyzer.address) as channel:
        call = await begun(channel, spec_of(samples))
        os.kill(spare_analyzer.child.pid, signal.SIGTERM)
        assert await eventually(lambda: any(line["event"] == "stopping" for line in spare_analyzer.log()))
        await call.write(block(0, samples))
        await call.write(END)
        while not (await call.read()).HasField("report"):
            pass
        assert await call.read() is grpc.aio.EOF
    async with asyncio.timeout(100):
        assert await spare_analyzer.child.exited() == 0
    assert not [line for line in spare_analyzer.log() if line["level"] in ("error", "critical")]
