"""Turns: order, and that work which nobody waits for ends at its next step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import REGISTRY

from servers.platform.slots import BACKGROUND, INTERACTIVE
from servers.platform.turns import Turns


@pytest.fixture
def turns() -> Iterator[Turns]:
    made = Turns("turns", 1)
    yield made
    made.close()


def held(name: str) -> float:
    values = (REGISTRY.get_sample_value(name, {"resource": "turns", "priority": str(each)}) for each in (1, 2))
    return sum(value or 0 for value in values)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_between_its_steps_long_work_lets_others_pass(turns: Turns) -> None:
    order: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def long(pause: Callable[[], None]) -> str:
        order.append("long begins")
        begun.set()
        assert go_on.wait(10)
        pause()
        order.append("long ends")
        return "long"

    working = asyncio.create_task(turns.steps(BACKGROUND, long))
    await until(begun.is_set)
    others = [
        asyncio.create_task(turns.step(BACKGROUND, False, order.append, "background")),
        asyncio.create_task(turns.step(INTERACTIVE, False, order.append, "person")),
    ]
    await until(lambda: held("contrafact_slots_waiting") == 2)
    assert order == ["long begins"]
    go_on.set()
    assert await working == "long"
    await asyncio.gather(*others)
    assert order == ["long begins", "person", "background", "long ends"]
    assert held("contrafact_slots_held") == 0


async def test_long_work_is_stopped_at_its_next_step(turns: Turns) -> None:
    steps, begun, go_on, ended = 0, threading.Event(), threading.Event(), threading.Event()

    def long(pause: Callable[[], None]) -> None:
        nonlocal steps
        try:
            while True:
                begun.set()
                assert go_on.wait(10)
                steps += 1
                pause()
        finally:
            ended.set()

    working = asyncio.create_task(turns.steps(INTERACTIVE, long))
    await until(begun.is_set)
    working.cancel()
    await asyncio.sleep(0.05)
    assert not working.done()  # its step is waited for
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert ended.is_set()
    assert steps == 1
    assert held("contrafact_slots_held") == held("contrafact_slots_waiting") == 0
    assert await turns.step(BACKGROUND, False, str, 1) == "1"


async def test_long_work_is_stopped_while_others_go_first(turns: Turns) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def long(pause: Callable[[], None]) -> None:
        begun.set()
        while True:
            pause()

    def urgent() -> bool:
        return go_on.wait(10)

    working = asyncio.create_task(turns.steps(BACKGROUND, long))
    await until(begun.is_set)
    first = asyncio.create_task(turns.step(INTERACTIVE, False, urgent))
    await until(lambda: held("contrafact_slots_waiting") == 1)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert not first.done()
    go_on.set()
    assert await first
    assert held("contrafact_slots_held") == held("contrafact_slots_waiting") == 0


async def test_the_error_of_long_work_is_raised(turns: Turns) -> None:
    def long(pause: Callable[[], None]) -> None:
        pause()
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        await turns.steps(BACKGROUND, long)
    assert held("contrafact_slots_held") == 0
