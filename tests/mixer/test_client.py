"""The orchestrator's client of the mixer, against the real server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

import grpc
import numpy as np
import pytest
from contrafact.engine.v1.mixer_pb2 import MixInput, MixReport

from servers.local.ports import free_port
from servers.media.blocks import Block
from servers.orchestrator.engines.mixer import Mixer, MixerError
from servers.platform.settings import Settings
from tests.media.signals import RATE, Samples, noise, sine
from tests.mixer.conftest import MixerProcess
from tests.mixer.signals import spec_of, whole_mix
from tests.mixer.test_server import eventually

SILENCE = np.zeros((2, RATE), np.float32)


async def blocks(samples: Samples, sizes: Sequence[int] = (RATE,)) -> AsyncGenerator[Block, None]:
    """``samples`` in blocks of ``sizes``, again and again."""
    start, turn = 0, 0
    while start < samples.shape[1]:
        part = samples[:, start : start + sizes[turn % len(sizes)]]
        yield Block(part, RATE, start)
        start, turn = start + part.shape[1], turn + 1


async def endless(seconds: int = 10**6) -> AsyncIterator[Block]:
    for second in range(seconds):
        yield Block(SILENCE, RATE, second * RATE)


async def stuck() -> AsyncIterator[Block]:
    """One block, then nothing."""
    yield Block(SILENCE, RATE, 0)
    await asyncio.Event().wait()


async def collected(mix: AsyncGenerator[Block | MixReport, None]) -> tuple[Samples, MixReport]:
    """The whole mix, which must be in order and end with a report."""
    parts: list[Samples] = []
    report = None
    async with aclosing(mix):
        async for item in mix:
            assert report is None
            if isinstance(item, Block):
                assert item.sample_rate == RATE
                assert item.start == sum(part.shape[1] for part in parts)
                parts.append(item.samples)
            else:
                report = item
    assert report is not None
    return np.concatenate(parts, axis=1), report


def tasks() -> set[asyncio.Task]:
    return asyncio.all_tasks() - {task for task in asyncio.all_tasks() if task is asyncio.current_task()}


async def test_a_mix(mixer: MixerProcess) -> None:
    inputs = {"new": sine(300, 9, -9), "drums": noise(9, -12, seed=1), "old": sine(300, 9, -3)}
    spec = spec_of(
        MixInput(name="new", loudness_reference="old"),
        MixInput(name="drums", gain_db=3),
        MixInput(name="old", reference_only=True),
        frames=9 * RATE,
    )
    spec.true_peak_ceiling_db = -1.0
    sources = {
        "drums": blocks(inputs["drums"], [100, 70_000, 1]),
        "old": blocks(inputs["old"], [9 * RATE]),
        "new": blocks(inputs["new"]),
    }
    before = tasks()
    async with Mixer(mixer.settings) as client:
        mix, report = await collected(client.mix(spec, sources))
        assert tasks() <= before
    expected, expected_report = whole_mix(spec, list(inputs.values()))
    np.testing.assert_array_equal(mix, expected)
    assert report == expected_report
    assert await eventually(lambda: mixer.active() == 0)


async def test_fast_inputs_wait_for_slow_ones(mixer: MixerProcess) -> None:
    """The server would refuse one that came 60 s ahead."""
    read = 0

    async def fast() -> AsyncIterator[Block]:
        nonlocal read
        async for block in endless(120):
            read = block.start // RATE + 1
            yield block

    async def slow() -> AsyncIterator[Block]:
        async for block in endless(120):
            assert read <= block.start // RATE + 20 + 2
            yield block

    spec = spec_of(MixInput(name="fast"), MixInput(name="slow"), frames=120 * RATE)
    async with Mixer(mixer.settings, read_ahead_seconds=20.0) as client:
        mix, _ = await collected(client.mix(spec, {"fast": fast(), "slow": slow()}))
    assert mix.shape == (2, 120 * RATE)


async def test_a_block_larger_than_the_read_ahead(mixer: MixerProcess) -> None:
    samples = noise(5, -20, seed=1)
    spec = spec_of(MixInput(), MixInput(gain_db=-60), frames=5 * RATE)
    async with Mixer(mixer.settings, read_ahead_seconds=0.1) as client:
        sources = {"a": blocks(samples, [5 * RATE]), "b": blocks(0 * samples, [5 * RATE])}
        np.testing.assert_array_equal((await collected(client.mix(spec, sources)))[0], samples)


async def test_a_listener_who_stops_stops_the_inputs(mixer: MixerProcess) -> None:
    read = 0

    async def counted() -> AsyncIterator[Block]:
        nonlocal read
        async for block in endless():
            read += 1
            yield block

    async with Mixer(mixer.settings) as client:
        spec = spec_of(MixInput(), frames=10**6 * RATE)
        async with aclosing(client.mix(spec, {"a": counted()})) as mix:
            await anext(mix)
            stopped_at = -1
            while stopped_at != read:
                stopped_at = read
                await asyncio.sleep(0.5)
        assert read < 200  # what gRPC holds on its way, whatever the length


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_nothing_is_left_of_a_mix_that_ends_early(mixer: MixerProcess, how: str) -> None:
    before = tasks()
    spec = spec_of(MixInput(), MixInput(), frames=100 * RATE)
    async with Mixer(mixer.settings) as client:
        mix = client.mix(spec, {"a": endless(), "b": stuck()})
        assert isinstance(await anext(mix), Block)
        if how == "cancelled":

            async def rest() -> None:
                async for _ in mix:
                    pass

            task = asyncio.create_task(rest())
            await asyncio.sleep(0.1)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await mix.aclose()
        assert tasks() <= before
    assert await eventually(lambda: mixer.active() == 0)


async def failing() -> AsyncIterator[Block]:
    yield Block(SILENCE, RATE, 0)
    raise LookupError("no more")


async def test_the_error_of_an_input_is_raised_as_it_is(mixer: MixerProcess) -> None:
    spec = spec_of(MixInput(), MixInput(), frames=100 * RATE)
    async with Mixer(mixer.settings) as client:
        with pytest.raises(LookupError, match="no more"):
            await collected(client.mix(spec, {"a": stuck(), "b": failing()}))
    assert await eventually(lambda: mixer.active() == 0)


async def test_inputs_that_are_not_the_spec(mixer: MixerProcess) -> None:
    spec = spec_of(MixInput(), frames=2 * RATE)
    async with Mixer(mixer.settings) as client:
        with pytest.raises(ValueError, match="not those of the spec"):
            await collected(client.mix(spec, {"b": endless()}))
        with pytest.raises(ValueError, match="ended after 44100 of 88200 frames"):
            await collected(client.mix(spec, {"a": endless(1)}))
        with pytest.raises(ValueError, match="not what was announced"):
            await collected(client.mix(spec_of(MixInput(), frames=9, rate=48_000), {"a": endless(1)}))


@pytest.mark.parametrize(
    ("samples", "ceiling", "reason"),
    [
        (SILENCE, 3.0, "INVALID_FIELD"),
        (SILENCE + np.nan, 0.0, "INVALID_SAMPLES"),
        (np.zeros((2, 9 * RATE)), 0.0, "TOO_MANY_FRAMES"),
    ],
)
async def test_refusals_have_their_reason(mixer: MixerProcess, samples: Samples, ceiling: float, reason: str) -> None:
    spec = spec_of(MixInput(), frames=RATE)
    spec.true_peak_ceiling_db = ceiling
    async with Mixer(mixer.settings) as client:
        with pytest.raises(MixerError) as refusal:
            await collected(client.mix(spec, {"a": blocks(samples)}))
    assert (refusal.value.status, refusal.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert refusal.value.message


@pytest.mark.parametrize("source", [endless, stuck])
async def test_the_server_dies(spare_mixer: MixerProcess, source: type) -> None:
    spec = spec_of(MixInput(), MixInput(), frames=10**6 * RATE)
    before = tasks()
    async with Mixer(spare_mixer.settings) as client:
        mix = client.mix(spec, {"a": endless(), "b": source()})
        assert isinstance(await anext(mix), Block)
        os.kill(spare_mixer.child.pid, signal.SIGKILL)
        with pytest.raises(MixerError) as failure:
            async for _ in mix:
                pass
        assert failure.value.status is grpc.StatusCode.UNAVAILABLE
        assert tasks() <= before
        # It comes back, and the same client finds it.
        await spare_mixer.child.stop()
        await spare_mixer.child.start()
        await collected(client.mix(spec_of(MixInput(), frames=RATE), {"a": endless(1)}))


async def test_a_server_that_hangs_is_noticed(spare_mixer: MixerProcess) -> None:
    spec = spec_of(MixInput(), frames=10**6 * RATE)
    async with Mixer(spare_mixer.settings, idle_seconds=5.0) as client:
        mix = client.mix(spec, {"a": endless()})
        assert isinstance(await anext(mix), Block)
        os.kill(spare_mixer.child.pid, signal.SIGSTOP)
        try:
            with pytest.raises(MixerError) as failure:
                async for _ in mix:
                    pass
        finally:
            os.kill(spare_mixer.child.pid, signal.SIGCONT)
        assert failure.value.reason == "MIXER_STALLED"


async def test_a_slow_input_is_not_the_mixers_fault(mixer: MixerProcess) -> None:
    async def slow() -> AsyncIterator[Block]:
        async for block in endless(1):
            await asyncio.sleep(7.0)
            yield block

    async with Mixer(mixer.settings, idle_seconds=5.0) as client:
        await collected(client.mix(spec_of(MixInput(), frames=RATE), {"a": slow()}))


async def test_no_server() -> None:
    async with Mixer(Settings(mixer_url=f"127.0.0.1:{free_port()}"), idle_seconds=0.5) as client:
        with pytest.raises(MixerError) as failure:
            await collected(client.mix(spec_of(MixInput(), frames=RATE), {"a": endless(1)}))
    assert failure.value.reason == "MIXER_STALLED"
