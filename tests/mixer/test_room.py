"""What becomes of mixes for which there is no room: they wait, in order of priority, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import grpc
import numpy as np
import pytest
from contrafact.engine.v1.mixer_pb2 import MixInput

from servers.media.blocks import Block
from servers.mixer.server import MAX_MIXES
from servers.orchestrator.engines.mixer import Mixer, MixerError
from servers.platform.settings import Settings
from tests.media.signals import RATE, noise
from tests.mixer.conftest import MixerProcess
from tests.mixer.signals import spec_of
from tests.mixer.test_client import blocks, collected, endless, stuck
from tests.mixer.test_server import eventually

ONE = spec_of(MixInput(), frames=RATE)
LONG = spec_of(MixInput(), MixInput(), frames=100 * RATE)


def changed(mixer: MixerProcess, **values: object) -> Settings:
    """Settings by which a client finds ``mixer``."""
    return mixer.settings.model_copy(update=values)


@asynccontextmanager
async def under_way(client: Mixer) -> AsyncIterator[None]:
    """A mix that has begun and goes no further."""
    async with aclosing(client.mix(LONG, {"a": endless(), "b": stuck()}, priority=1)) as mix:
        assert isinstance(await anext(mix), Block)
        yield


@asynccontextmanager
async def full(mixer: MixerProcess) -> AsyncIterator[AsyncExitStack]:
    """The mixer has no room until something that is on the stack is closed."""
    async with (
        Mixer(changed(mixer, mixes_in_flight=MAX_MIXES), read_ahead_seconds=1.0) as client,
        AsyncExitStack() as stack,
    ):
        for _ in range(MAX_MIXES):
            await stack.enter_async_context(under_way(client))
        async with AsyncExitStack() as first:
            first.push_async_exit(stack.pop_all())
            yield first


async def test_a_mix_waits_until_a_full_mixer_has_room(mixer: MixerProcess) -> None:
    before, samples = mixer.refusals(), noise(1, -12, seed=1)
    async with full(mixer) as others, Mixer(mixer.settings) as client:
        mixing = asyncio.create_task(collected(client.mix(ONE, {"a": blocks(samples, [1000])})))
        assert await eventually(lambda: mixer.refusals() >= before + 2)
        assert not mixing.done()
        await others.aclose()
        np.testing.assert_array_equal((await mixing)[0], samples)  # nothing is lost of an input that had been begun
    assert await eventually(lambda: mixer.active() == 0)


async def test_nobody_waits_for_ever_for_a_full_mixer(mixer: MixerProcess) -> None:
    async with full(mixer), Mixer(changed(mixer, mixer_wait_seconds=0.5)) as client:
        with pytest.raises(MixerError) as refusal:
            await collected(client.mix(ONE, {"a": endless(1)}))
    assert (refusal.value.status, refusal.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_MIXES")
    assert await eventually(lambda: mixer.active() == 0)


async def test_an_input_that_fails_meanwhile_is_the_error(mixer: MixerProcess) -> None:
    async def broken() -> AsyncGenerator[Block, None]:
        raise LookupError("no more")
        yield

    async with full(mixer), Mixer(mixer.settings) as client:
        with pytest.raises(LookupError, match="no more"):
            await collected(client.mix(ONE, {"a": broken()}))


async def test_of_those_who_wait_a_person_is_next(mixer: MixerProcess) -> None:
    order = []

    async def mix(client: Mixer, name: str, priority: int) -> None:
        await collected(client.mix(ONE, {"a": endless(1)}, priority=priority))
        order.append(name)

    async with Mixer(changed(mixer, mixes_in_flight=1)) as client:
        async with under_way(client):
            waiting = [asyncio.create_task(mix(client, *who)) for who in (("scan", 2), ("person", 1))]
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
    assert order == ["person", "scan"]


async def test_nobody_waits_for_ever_for_others_of_this_process(mixer: MixerProcess) -> None:
    settings = changed(mixer, mixes_in_flight=1, mixer_wait_seconds=0.2)
    async with Mixer(settings) as client:
        async with under_way(client):
            with pytest.raises(MixerError, match="left no room") as refusal:
                await collected(client.mix(ONE, {"a": endless(1)}))
        assert refusal.value.reason == "TOO_MANY_MIXES"
        await collected(client.mix(ONE, {"a": endless(1)}))  # the place is free again
