"""The grains engine over gRPC, without our client: what it sends, what it refuses, what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from contrafact.engine.v1.grains_pb2 import (
    BuildRequest,
    BuildSpec,
    GrainsEnd,
    LibraryPiece,
    NoteBatch,
    RenderRequest,
    RenderSpec,
    TraceRequest,
    TraceSpec,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from servers.grains.library import VERSION
from servers.grains.server import MAX_BACKGROUND, MAX_BACKGROUND_RENDERS, MAX_CALLS, MAX_RENDERS
from servers.grains.trace import TRACE_VERSION
from tests.engine_process import GrainsProcess
from tests.grains.calls import KINDS, Code, answers, begun, begun_render, method_of, refusal, spec_with
from tests.grains.sounds import RATE
from tests.grains.streams import (
    Built,
    Samples,
    audio_of,
    audio_requests,
    block,
    built_of,
    expected_audio,
    expected_library,
    expected_notes,
    library_requests,
    made_notes,
    note_requests,
    notes_of,
    play_spec,
    sound,
    spec_of,
)
from tests.mixer.test_server import eventually

SECOND = np.zeros((2, RATE), np.float32)


async def built(channel: grpc.aio.Channel, samples: Samples, cuts: Sequence[int] = (), **more: object) -> Built:
    requests = audio_requests(BuildRequest, spec_of(samples, BuildSpec, **more), samples, cuts)
    return built_of(await answers(channel, "Build", requests), len(samples))


@pytest.mark.parametrize("name", ["", "contrafact.engine.v1.GrainsService"])
async def test_health(channel: grpc.aio.Channel, name: str) -> None:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection(grains: GrainsProcess) -> None:
    with grpc.insecure_channel(grains.address) as plain:
        assert "contrafact.engine.v1.GrainsService" in ProtoReflectionDescriptorDatabase(plain).get_services()


async def test_a_library_is_the_same_as_without_a_server(channel: grpc.aio.Channel) -> None:
    samples, expected = sound(12), expected_library()
    for cuts in ([], [1, 70_000, 140_001, 300_000]):
        found = await built(channel, samples, cuts)
        assert found.sha256 == expected.sha256
        np.testing.assert_array_equal(found.preview, expected.preview)
        assert (found.report.grains, found.report.pitched, found.report.version) == (24, 24, VERSION)
        assert 105 < found.report.low_hz < found.report.high_hz < 900
        assert 24 * 0.25 < found.report.seconds < 24 * 0.4


@pytest.mark.parametrize("channels", [1, 2])
async def test_notes_are_the_same_as_without_a_server(channel: grpc.aio.Channel, channels: int) -> None:
    samples = sound(12, channels=channels, seed=1)
    expected = expected_notes(samples)
    assert len(expected) >= 24
    for cuts in ([], [1, 70_000, 140_001, 300_000]):
        requests = audio_requests(TraceRequest, spec_of(samples, priority=1), samples, cuts)
        notes, report = notes_of(await answers(channel, "Trace", requests), samples.shape[1])
        assert notes == expected
        assert (report.notes, report.version) == (len(notes), TRACE_VERSION)
        assert report.pitched == sum(note.pitch_hz > 0 for note in notes)


@pytest.mark.parametrize("channels", [1, 2])
async def test_audio_is_the_same_as_without_a_server(channel: grpc.aio.Channel, channels: int) -> None:
    library, frames = expected_library(seed=channels).data, 12 * RATE + 1
    notes = made_notes(150, frames)
    spec = play_spec(library, frames, channels=channels, density=2, spread=0.5, variation=0.3, shift_pitch=True)
    expected = expected_audio(library, notes, spec)
    assert np.abs(expected).max() > 0.05
    for turn, sizes in enumerate(((1000,), (1, 7, 90))):
        requests = [RenderRequest(spec=spec), *note_requests(notes, frames, sizes)]
        if turn == 0:
            requests[1:1] = library_requests(library)
        wanted, audio, report = audio_of(await answers(channel, "Render", requests), channels)
        assert wanted == (turn == 0)
        np.testing.assert_array_equal(audio, expected)
        assert report.notes == 150
        assert report.grains > 150
        assert 1 < report.different_grains <= 24


async def test_without_notes_there_is_silence(channel: grpc.aio.Channel) -> None:
    """Also where nothing was ever said of how far they have come."""
    library = expected_library().data
    spec = play_spec(library, 100_000, channels=1)
    wanted = (await begun_render(channel, spec))[1]
    parts = library_requests(library) if wanted else []
    end = RenderRequest(end=GrainsEnd())
    _, audio, report = audio_of(await answers(channel, "Render", [RenderRequest(spec=spec), *parts, end]), 1)
    assert audio.shape == (1, 100_000)
    assert not audio.any()
    assert (report.notes, report.grains) == (0, 0)


async def test_two_may_bring_a_library_at_once(channel: grpc.aio.Channel) -> None:
    """Both are asked for it; the second is heard out although the first has brought it meanwhile."""
    library, frames = expected_library(seed=7).data, 2 * RATE
    notes = made_notes(20, frames)
    spec = play_spec(library, frames)
    (first, wanted), (second, wanted_again) = [await begun_render(channel, spec) for _ in range(2)]
    assert wanted
    assert wanted_again
    expected = expected_audio(library, notes, spec)
    for call in (first, second):
        for request in (*library_requests(library), *note_requests(notes, frames)):
            await call.write(request)
        parts = []
        while not (response := await call.read()).HasField("report"):
            parts.append(np.frombuffer(response.block.samples, "<f4").reshape(2, -1))
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), expected)
    call, wanted = await begun_render(channel, spec)
    assert not wanted
    call.cancel()


async def test_without_room_libraries_are_wanted_again(spare_grains: GrainsProcess) -> None:
    library, frames = expected_library().data, RATE
    spec = play_spec(library, frames)
    requests = [RenderRequest(spec=spec), *library_requests(library), *note_requests(made_notes(3, frames), frames)]
    async with grpc.aio.insecure_channel(spare_grains.address) as channel:
        for _ in range(2):
            assert audio_of(await answers(channel, "Render", requests), 2)[0]


def long_spec(method: str, priority: int) -> Any:
    kind = KINDS[method][1] if method in KINDS else RenderSpec
    return spec_with(kind, frames=100 * RATE, priority=priority)


async def test_there_is_a_bound_on_calls(grains: GrainsProcess, channel: grpc.aio.Channel) -> None:
    calls: list[Any] = []

    async def fill(count: int, method: str, priority: int) -> None:
        for _ in range(count):
            calls.append(await begun(channel, method, long_spec(method, priority)))

    async def is_full(method: str, priority: int) -> None:
        request = KINDS[method][0] if method in KINDS else RenderRequest
        code, reason, _, _ = await refusal(grains, method, request(spec=long_spec(method, priority)))
        assert (code, reason) == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")

    await fill(MAX_BACKGROUND_RENDERS, "Render", 2)
    await is_full("Render", 2)
    await fill(MAX_RENDERS - MAX_BACKGROUND_RENDERS, "Render", 1)
    await is_full("Render", 1)
    await fill(MAX_BACKGROUND - MAX_BACKGROUND_RENDERS, "Trace", 2)
    await is_full("Trace", 2)
    await is_full("Build", 0)
    await fill(MAX_CALLS - len(calls), "Trace", 1)
    await is_full("Trace", 1)
    for call in calls:
        call.cancel()
    assert await eventually(lambda: grains.active() == 0)
    (await begun(channel, "Render", long_spec("Render", 2))).cancel()


async def test_a_group_is_admitted_as_a_whole(grains: GrainsProcess, channel: grpc.aio.Channel) -> None:
    """Its places are kept for it until its last rendering has ended, and no longer."""

    def of_group(name: str, size: int, priority: int = 2) -> RenderSpec:
        spec: RenderSpec = long_spec("Render", priority)
        spec.group, spec.group_size = name, size
        return spec

    async def is_full(spec: RenderSpec) -> None:
        code, reason, _, _ = await refusal(grains, "Render", RenderRequest(spec=spec))
        assert (code, reason) == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")

    half = MAX_BACKGROUND_RENDERS // 2
    first, second = [await begun(channel, "Render", of_group(name, half)) for name in ("one", "two")]
    await is_full(long_spec("Render", 2))
    await is_full(of_group("three", 2))
    await is_full(of_group("three", MAX_RENDERS - 2 * half + 1, priority=1))
    others = [await begun(channel, "Render", of_group("one", half)) for _ in range(half - 1)]
    await is_full(of_group("one", half))
    second.cancel()
    assert await eventually(lambda: grains.active() == half)
    first.cancel()  # the others of its group are still there
    assert await eventually(lambda: grains.active() == half - 1)
    alone = await begun(channel, "Render", long_spec("Render", 2))
    await is_full(of_group("three", half))
    again = await begun(channel, "Render", of_group("one", half))
    for call in (*others, again):
        call.cancel()
    assert await eventually(lambda: grains.active() == 1)
    whole = MAX_BACKGROUND_RENDERS - 1
    for call in (alone, await begun(channel, "Render", of_group("three", whole))):
        call.cancel()
    assert await eventually(lambda: grains.active() == 0)


def nothing_is_held(grains: GrainsProcess) -> bool:
    """Whether no call is under way, and no turn and no place is held or waited for."""
    values = [grains.metrics(name) for name in ("contrafact_slots_held", "contrafact_slots_waiting")]
    assert all(values)
    return grains.active() == 0 and not any(any(each.values()) for each in values)


@pytest.mark.parametrize("how", ["cancelled", "past its deadline"])
@pytest.mark.parametrize("method", ["Build", "Trace", "Render"])
async def test_a_call_that_ends_early_leaves_nothing(
    grains: GrainsProcess, channel: grpc.aio.Channel, method: str, how: str
) -> None:
    timeout = 2.0 if how == "past its deadline" else None
    call = await begun(channel, method, long_spec(method, 2), timeout=timeout)
    part = {"block": block(0, SECOND)} if method in KINDS else {"library": LibraryPiece(data=b"no")}
    await call.write((KINDS[method][0] if method in KINDS else RenderRequest)(**part))
    assert grains.active() == 1
    if how == "cancelled":
        call.cancel()
    assert await eventually(lambda: nothing_is_held(grains))


async def test_cancelling_stops_the_work(grains: GrainsProcess, channel: grpc.aio.Channel) -> None:
    """All of a sound was sent when the call is gone."""
    samples = sound(30)
    call = method_of(channel, "Build")()
    for request in audio_requests(BuildRequest, spec_of(samples, BuildSpec), samples):
        await call.write(request)
    call.cancel()
    assert await eventually(lambda: nothing_is_held(grains), 60)


async def test_a_build_waits_for_others(grains: GrainsProcess, channel: grpc.aio.Channel) -> None:
    """It says that it is alive, and nothing of it is held meanwhile; a person's is next."""
    samples = sound(2)
    builds = [await begun(channel, "Build", long_spec("Build", 1)) for _ in range(4)]
    ended: list[str] = []

    async def build(name: str, priority: int) -> None:
        call = await begun(channel, "Build", spec_of(samples, BuildSpec, priority=priority))
        assert (await call.read()).progress == 0
        for request in list(audio_requests(BuildRequest, spec_of(samples, BuildSpec), samples))[1:]:
            await call.write(request)
        while not (await call.read()).HasField("report"):
            pass
        ended.append(name)

    waiting = asyncio.create_task(build("background", 2))
    assert await eventually(lambda: grains.active() == 5)
    person = asyncio.create_task(build("person", 1))
    await asyncio.sleep(2.0)
    assert not ended
    builds.pop().cancel()
    await asyncio.gather(waiting, person)
    assert ended == ["person", "background"]
    for call in builds:
        call.cancel()
    assert await eventually(lambda: grains.active() == 0)


async def test_a_person_passes_a_queue(spare_grains: GrainsProcess) -> None:
    """On one thread: four traces and a build are under way that nobody waits for, each of which takes far longer."""
    ended: list[str] = []
    long, short = sound(60), sound(3)

    async def work(channel: grpc.aio.Channel, method: str, samples: Samples, priority: int) -> None:
        request, kind = KINDS[method]
        await answers(channel, method, audio_requests(request, spec_of(samples, kind, priority=priority), samples))
        ended.append(f"{method} {priority}")

    async with grpc.aio.insecure_channel(spare_grains.address) as channel:
        others = [asyncio.create_task(work(channel, method, long, 2)) for method in ["Trace"] * 4 + ["Build"]]
        assert await eventually(lambda: spare_grains.active() == 5)
        for method in KINDS:
            await work(channel, method, short, 1)
        assert ended == ["Build 1", "Trace 1"]
        await asyncio.gather(*others)


async def test_a_flood_is_not_taken_in(grains: GrainsProcess, channel: grpc.aio.Channel) -> None:
    """Of an hour sent faster than it is traced, the server holds what gRPC holds on its way."""
    call, sent, before = await begun(channel, "Trace", long_spec("Trace", 2)), 0, grains.resident_bytes()
    call.cancel()
    samples = np.tile(sound(1), 1)
    spec = spec_with(TraceSpec, frames=3600 * RATE)
    call = await begun(channel, "Trace", spec, timeout=100)

    async def write() -> None:
        nonlocal sent
        for second in range(3600):
            await call.write(TraceRequest(block=block(second * RATE, samples)))
            sent += 1

    writing = asyncio.create_task(write())  # nothing is read of what comes back
    most = 0
    for _ in range(5):
        await asyncio.sleep(1.0)
        most = max(most, grains.resident_bytes())
    assert 0 < sent < 3600
    assert most - before < 100_000_000
    writing.cancel()
    call.cancel()
    assert await eventually(lambda: grains.active() == 0)


async def test_a_slow_reader_is_not_played_to(grains: GrainsProcess, channel: grpc.aio.Channel) -> None:
    """Of a whole hour that one batch lets it play, the server makes what gRPC takes; memory does not grow with it."""
    library, frames = expected_library().data, 3600 * RATE
    spec = play_spec(library, frames)
    call, wanted = await begun_render(channel, spec)
    for request in library_requests(library) if wanted else ():
        await call.write(request)
    notes = made_notes(4000, frames)
    await call.write(RenderRequest(notes=NoteBatch(notes=notes[:1000], until=notes[1000].start)))
    await asyncio.sleep(1.0)
    before = grains.resident_bytes()

    async def write() -> None:
        for request in list(note_requests(notes[1000:], frames, [3000])):
            await call.write(request)
        await call.done_writing()

    writing = asyncio.create_task(write())
    await asyncio.sleep(2.0)
    busy = grains.cpu_seconds()
    await asyncio.sleep(1.0)
    assert grains.cpu_seconds() - busy < 0.3  # it stands still
    received, most = 0, grains.resident_bytes()
    while (response := await call.read()) is not grpc.aio.EOF:
        received += len(response.block.samples) // 8
        if response.block.start % (100 * 65_536) == 0:
            most = max(most, grains.resident_bytes())
    await writing
    assert received == frames
    assert most - before < 100_000_000  # all of it: 1.3 GB


async def test_drain(spare_grains: GrainsProcess) -> None:
    samples = sound(2)
    async with grpc.aio.insecure_channel(spare_grains.address) as channel:
        call = await begun(channel, "Trace", spec_of(samples))
        os.kill(spare_grains.child.pid, signal.SIGTERM)
        assert await eventually(lambda: any(line["event"] == "stopping" for line in spare_grains.log()))
        for request in list(audio_requests(TraceRequest, spec_of(samples), samples))[1:]:
            await call.write(request)
        while not (await call.read()).HasField("report"):
            pass
        assert await call.read() is grpc.aio.EOF
    async with asyncio.timeout(20):
        assert await spare_grains.child.exited() == 0
    assert not [line for line in spare_grains.log() if line["level"] in ("error", "critical")]
