"""The mixer over gRPC, without our client: what it sends, what it refuses, what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
import numpy as np
import pytest
from contrafact.engine.v1 import mixer_pb2, mixer_pb2_grpc
from contrafact.engine.v1.mixer_pb2 import InputBlock, MixInput, MixReport, MixRequest, MixSpec
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from tests.media.signals import RATE, Samples, noise, sine
from tests.mixer.conftest import MixerProcess
from tests.mixer.signals import spec_of, whole_mix

Code = grpc.StatusCode
END = MixRequest(end=mixer_pb2.MixEnd())
PIECE = 32_768
SECOND = np.zeros((2, RATE), np.float32)


def block(place: int, start: int, samples: Samples) -> MixRequest:
    return MixRequest(block=InputBlock(input=place, start=start, samples=samples.astype("<f4").tobytes()))


def requests_of(spec: MixSpec, inputs: list[Samples]) -> Iterable[MixRequest]:
    """A whole mix, its inputs in turn."""
    yield MixRequest(spec=spec)
    for start in range(0, spec.frames, PIECE):
        for place, samples in enumerate(inputs):
            yield block(place, start, samples[:, start : start + PIECE])
    yield END


async def mixed(channel: grpc.aio.Channel, requests: Iterable[MixRequest], **options: Any) -> tuple[Samples, MixReport]:
    """What comes back, which must be in order and end with a report."""

    async def sent() -> AsyncIterator[MixRequest]:
        for request in requests:
            yield request

    call: Any = mixer_pb2_grpc.MixerServiceStub(channel).Mix(sent(), **options)
    parts: list[Samples] = []
    reports: list[MixReport] = []
    async for response in call:
        assert not reports
        if response.HasField("report"):
            reports.append(response.report)
        else:
            assert response.block.start == sum(part.shape[1] for part in parts)
            parts.append(np.frombuffer(response.block.samples, "<f4").reshape(2, -1))
    (report,) = reports
    return np.concatenate(parts, axis=1), report


async def refusal(mixer: MixerProcess, *requests: MixRequest) -> tuple[grpc.StatusCode, str, list[str], dict[str, str]]:
    """Status, reason, fields at fault and facts of a refused mix."""

    def attempt() -> Any:
        # grpc's asyncio API may lose what is answered while it sends.
        with grpc.insecure_channel(mixer.address) as plain:
            stub: Any = mixer_pb2_grpc.MixerServiceStub(plain)
            with pytest.raises(grpc.RpcError) as refused:
                list(stub.Mix(iter(requests), timeout=100))
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
    fields = [violation.field for violation in bad.field_violations]
    return error.code(), info.reason, fields, dict(info.metadata)


async def eventually(condition: Callable[[], bool], seconds: float = 100.0) -> bool:
    """Whether the condition comes true in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < deadline:
        if await asyncio.to_thread(condition):
            return True
        await asyncio.sleep(0.05)
    return False


@pytest.mark.parametrize("name", ["", "contrafact.engine.v1.MixerService"])
async def test_health(channel: grpc.aio.Channel, name: str) -> None:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=100)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection(mixer: MixerProcess) -> None:
    with grpc.insecure_channel(mixer.address) as plain:
        assert "contrafact.engine.v1.MixerService" in ProtoReflectionDescriptorDatabase(plain).get_services()


async def test_a_mix_is_the_same_as_without_a_server(channel: grpc.aio.Channel) -> None:
    inputs = [sine(300, 8, -6), noise(8, -20, seed=1), sine(300, 8, -12)]
    spec = spec_of(
        MixInput(loudness_reference="c"), MixInput(gain_db=20), MixInput(reference_only=True), frames=8 * RATE
    )
    spec.true_peak_ceiling_db = -1.0
    mix, report = await mixed(channel, requests_of(spec, inputs), timeout=100)
    expected, expected_report = whole_mix(spec, inputs)
    np.testing.assert_array_equal(mix, expected)
    assert report == expected_report
    assert report.true_peak_db <= -0.98
    assert report.matches[0].last_gain_db == pytest.approx(-6.0, abs=0.01)


async def test_mixes_at_once_do_not_mix(channel: grpc.aio.Channel) -> None:
    inputs = [[noise(10, -20, seed=seed)] for seed in range(3)]
    spec = spec_of(MixInput(), frames=10 * RATE)
    mixes = await asyncio.gather(*(mixed(channel, requests_of(spec, each), timeout=100) for each in inputs))
    for (mix, _), (expected,) in zip(mixes, inputs, strict=True):
        np.testing.assert_array_equal(mix, expected)


SPEC = spec_of(MixInput(), MixInput(), frames=100 * RATE)
GOOD = MixRequest(spec=SPEC)


def spec_with(**changes: Any) -> MixRequest:
    values: dict[str, Any] = {"sample_rate": RATE, "channels": 2, "frames": 9, "inputs": [MixInput(name="a")]}
    return MixRequest(spec=MixSpec(**values | changes))


@pytest.mark.parametrize(
    ("request_message", "fields"),
    [
        (spec_with(sample_rate=7999), ["spec.sample_rate"]),
        (spec_with(sample_rate=384_001), ["spec.sample_rate"]),
        (spec_with(channels=3), ["spec.channels"]),
        (spec_with(channels=0, frames=0), ["spec.channels", "spec.frames"]),
        (spec_with(inputs=[]), ["spec.inputs", "spec.inputs"]),  # too few, and nothing to mix
        (spec_with(inputs=[MixInput(name=f"i{at}") for at in range(65)]), ["spec.inputs"]),
        (spec_with(inputs=[MixInput(name="a"), MixInput(name="a")]), ["spec.inputs"]),
        (spec_with(inputs=[MixInput(name="a", reference_only=True)]), ["spec.inputs"]),
        (spec_with(inputs=[MixInput(name="a", loudness_reference="b")]), ["spec.inputs"]),
        (spec_with(inputs=[MixInput(name="a", loudness_reference="a")]), ["spec.inputs"]),
        (spec_with(inputs=[MixInput(name="No good")]), ["spec.inputs[0].name"]),
        (spec_with(inputs=[MixInput(name="a", gain_db=24.1)]), ["spec.inputs[0].gain_db"]),
        (spec_with(inputs=[MixInput(name="a", gain_db=-61)]), ["spec.inputs[0].gain_db"]),
        (spec_with(inputs=[MixInput(name="a", gain_db=float("nan"))]), ["spec.inputs[0].gain_db"]),
        (spec_with(true_peak_ceiling_db=0.1), ["spec.true_peak_ceiling_db"]),
        (spec_with(true_peak_ceiling_db=float("nan")), ["spec.true_peak_ceiling_db"]),
        (MixRequest(), ["request"]),
    ],
)
async def test_bad_specs_are_refused(mixer: MixerProcess, request_message: MixRequest, fields: list[str]) -> None:
    code, reason, found, _ = await refusal(mixer, request_message)
    assert (code, reason, found) == (Code.INVALID_ARGUMENT, "INVALID_FIELD", fields)


@pytest.mark.parametrize(
    ("requests", "reason", "fields", "facts"),
    [
        ([], "SPEC_MISSING", [], {}),
        ([END], "SPEC_MISSING", [], {}),
        ([block(0, 0, SECOND), GOOD], "SPEC_MISSING", [], {}),
        ([GOOD, GOOD], "SPEC_REPEATED", [], {}),
        ([GOOD, block(0, 0, SECOND)], "STREAM_BROKEN", [], {}),
        ([GOOD, block(2, 0, SECOND)], "UNKNOWN_INPUT", ["block.input"], {}),
        ([GOOD, block(64, 0, SECOND)], "INVALID_FIELD", ["block.input"], {}),
        ([GOOD, block(0, 0, SECOND[:, :0])], "INVALID_FIELD", ["block.samples"], {}),
        ([GOOD, block(1, 7, SECOND)], "WRONG_START", ["block.start"], {"input": "1", "expected": "0"}),
        ([GOOD, *[block(1, 0, SECOND)] * 2], "WRONG_START", ["block.start"], {"input": "1", "expected": f"{RATE}"}),
        ([GOOD, MixRequest(block=InputBlock(samples=bytes(12)))], "WRONG_SIZE", ["block.samples"], {}),
        ([GOOD, MixRequest(block=InputBlock(samples=bytes(13)))], "WRONG_SIZE", ["block.samples"], {}),
        ([GOOD, block(0, 0, SECOND * np.nan)], "INVALID_SAMPLES", ["block.samples"], {}),
        ([GOOD, block(0, 0, SECOND + np.inf)], "INVALID_SAMPLES", ["block.samples"], {}),
        ([spec_with(), block(0, 0, SECOND[:, :10])], "TOO_MANY_FRAMES", ["block.samples"], {}),
        ([spec_with(), block(0, 0, SECOND[:, :8]), END], "TOO_FEW_FRAMES", [], {"input": "0", "received": "8"}),
    ],
)
async def test_bad_streams_are_refused(
    mixer: MixerProcess, requests: list[MixRequest], reason: str, fields: list[str], facts: dict[str, str]
) -> None:
    code, found_reason, found_fields, found_facts = await refusal(mixer, *requests)
    assert (code, found_reason, found_fields, found_facts) == (Code.INVALID_ARGUMENT, reason, fields, facts)


async def test_nobody_runs_far_ahead(mixer: MixerProcess) -> None:
    blocks = [block(0, start * RATE, SECOND) for start in range(61)]
    code, reason, _, facts = await refusal(mixer, GOOD, *blocks)
    assert (code, reason) == (Code.RESOURCE_EXHAUSTED, "RAN_AHEAD")
    assert facts == {"input": "0", "slowest": "0", "limit": str(60 * RATE)}


async def test_there_is_a_bound_on_mixes(mixer: MixerProcess, channel: grpc.aio.Channel) -> None:
    stub: Any = mixer_pb2_grpc.MixerServiceStub(channel)
    calls = [stub.Mix() for _ in range(32)]
    for call in calls:
        await call.write(GOOD)
    assert await eventually(lambda: mixer.active() == 32)
    code, reason, _, _ = await refusal(mixer, GOOD)
    assert (code, reason) == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_MIXES")
    for call in calls:
        call.cancel()
    assert await eventually(lambda: mixer.active() == 0)
    await mixed(channel, requests_of(spec_of(MixInput(), frames=RATE), [SECOND]), timeout=100)


@pytest.mark.parametrize("how", ["cancelled", "past its deadline"])
async def test_a_call_that_ends_early_leaves_nothing(mixer: MixerProcess, channel: grpc.aio.Channel, how: str) -> None:
    stub: Any = mixer_pb2_grpc.MixerServiceStub(channel)
    call = stub.Mix(timeout=6.0 if how == "past its deadline" else None)
    await call.write(GOOD)
    for place in (0, 1):
        await call.write(block(place, 0, SECOND))
    assert (await call.read()).block.start == 0
    assert await eventually(lambda: mixer.active() == 1)
    if how == "cancelled":
        call.cancel()
    assert await eventually(lambda: mixer.active() == 0)


async def test_a_slow_reader_is_not_read_from(mixer: MixerProcess, channel: grpc.aio.Channel) -> None:
    """Of ten minutes of audio the server takes what gRPC holds on its way, and the rest when its answers are read."""
    frames = 600 * RATE
    stub: Any = mixer_pb2_grpc.MixerServiceStub(channel)
    before = mixer.resident_bytes()
    call, sent = stub.Mix(timeout=120), 0

    async def write() -> None:
        nonlocal sent
        await call.write(MixRequest(spec=spec_of(MixInput(), frames=frames)))
        for start in range(0, frames, RATE):
            await call.write(block(0, start, SECOND))
            sent += 1
        await call.write(END)
        await call.done_writing()

    writing = asyncio.create_task(write())
    stopped_at = -1
    while stopped_at != sent:  # until it has stood still for a second
        stopped_at = sent
        await asyncio.sleep(1.0)
    assert sent < 200
    received, most = 0, mixer.resident_bytes()
    while (response := await call.read()) is not grpc.aio.EOF:
        received += len(response.block.samples) // 8
        if response.block.start % (100 * RATE) == 0:
            most = max(most, mixer.resident_bytes())
    await writing
    assert (received, sent) == (frames, 600)
    assert most - before < 60_000_000  # all of it: 212 MB in, as much out


async def test_drain(spare_mixer: MixerProcess) -> None:
    async with grpc.aio.insecure_channel(spare_mixer.address) as channel:
        stub: Any = mixer_pb2_grpc.MixerServiceStub(channel)
        call = stub.Mix()
        await call.write(MixRequest(spec=spec_of(MixInput(), frames=RATE)))
        assert await eventually(lambda: spare_mixer.active() == 1)
        os.kill(spare_mixer.child.pid, signal.SIGTERM)
        assert await eventually(lambda: any(line["event"] == "stopping" for line in spare_mixer.log()))
        await call.write(block(0, 0, SECOND))
        await call.write(END)
        responses = [response async for response in call]
        assert responses[-1].HasField("report")
    async with asyncio.timeout(100):
        assert await spare_mixer.child.exited() == 0
    assert not [line for line in spare_mixer.log() if line["level"] in ("error", "critical")]
