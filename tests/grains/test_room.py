"""What becomes of work for which there is no room: it waits, in order of priority, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import grpc
import numpy as np
import pytest
from contrafact.engine.v1.grains_pb2 import NoteBatch

from servers.grains.server import MAX_BACKGROUND_RENDERS, MAX_RENDERS
from servers.orchestrator.engines.grains import Grains, GrainsError
from servers.platform.settings import Settings
from tests.engine_process import GrainsProcess
from tests.grains.sounds import RATE
from tests.grains.streams import batches_of, expected_audio, expected_library, made_notes, play_spec
from tests.grains.test_client import Shelf, heard, several
from tests.mixer.test_server import eventually

LONG = 100 * RATE


def changed(grains: GrainsProcess, **values: object) -> Settings:
    """Settings by which a client finds ``grains``."""
    return grains.settings.model_copy(update=values)


@asynccontextmanager
async def under_way(client: Grains, priority: int = 1) -> AsyncIterator[None]:
    """A rendering that has begun and goes no further."""

    async def batches() -> AsyncIterator[NoteBatch]:
        yield NoteBatch(until=RATE)
        await asyncio.Event().wait()

    shelf = Shelf(expected_library().data)
    async with aclosing(client.render(play_spec(shelf.data, LONG), shelf, batches(), priority=priority)) as stream:
        await anext(stream)
        yield


@asynccontextmanager
async def full(grains: GrainsProcess) -> AsyncIterator[AsyncExitStack]:
    """The engine has no room for a rendering until something that is on the stack is closed."""
    async with Grains(changed(grains, grains_in_flight=MAX_RENDERS)) as client, AsyncExitStack() as stack:
        for place in range(MAX_RENDERS):
            await stack.enter_async_context(under_way(client, 2 if place < MAX_BACKGROUND_RENDERS else 1))
        async with AsyncExitStack() as first:
            first.push_async_exit(stack.pop_all())
            yield first


async def play(client: Grains, priority: int = 2) -> np.ndarray:
    shelf, notes = Shelf(expected_library().data), made_notes(10, RATE)
    batches = several(batches_of(notes, RATE, [3]))
    return await heard(client.render(play_spec(shelf.data, RATE), shelf, batches, priority=priority))


async def test_it_waits_until_a_full_engine_has_room(grains: GrainsProcess) -> None:
    before = grains.refusals()
    async with full(grains) as others, Grains(grains.settings) as client:
        playing = asyncio.create_task(play(client))
        assert await eventually(lambda: grains.refusals() >= before + 2)
        assert not playing.done()
        await others.aclose()
        library = expected_library().data
        expected = expected_audio(library, made_notes(10, RATE), play_spec(library, RATE))
        np.testing.assert_array_equal(await playing, expected)
    assert await eventually(lambda: grains.active() == 0)


async def test_nobody_waits_for_ever_for_a_full_engine(grains: GrainsProcess) -> None:
    async with full(grains), Grains(changed(grains, grains_wait_seconds=0.5)) as client:
        with pytest.raises(GrainsError) as refusal:
            await play(client)
    assert (refusal.value.status, refusal.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
    assert await eventually(lambda: grains.active() == 0)


async def test_of_those_who_wait_a_person_is_next(grains: GrainsProcess) -> None:
    order = []

    async def ordered(client: Grains, name: str, priority: int) -> None:
        await play(client, priority)
        order.append(name)

    async with Grains(changed(grains, grains_in_flight=1)) as client:
        async with under_way(client):
            waiting = [asyncio.create_task(ordered(client, *who)) for who in (("background", 2), ("person", 1))]
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
    assert order == ["person", "background"]


async def test_nobody_waits_for_ever_for_others_of_this_process(grains: GrainsProcess) -> None:
    async with Grains(changed(grains, grains_in_flight=1, grains_wait_seconds=0.5)) as client:
        async with under_way(client):
            with pytest.raises(GrainsError, match="left no room") as refusal:
                await play(client)
        assert refusal.value.reason == "TOO_MANY_CALLS"
    assert await eventually(lambda: grains.active() == 0)
