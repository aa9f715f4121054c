"""Slots: limits, order, and that none is lost whenever whoever is cancelled."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from servers.platform.slots import BACKGROUND, INTERACTIVE, Slots


@dataclass
class User:
    """Somebody who asks at a tick, holds for so many, and may be cancelled after so many."""

    priority: int
    begins: int
    holds: int
    cancelled_after: int | None


USERS = st.lists(
    st.builds(
        User,
        st.sampled_from([INTERACTIVE, BACKGROUND]),
        st.integers(0, 12),
        st.integers(0, 5),
        st.none() | st.integers(0, 12),
    ),
    max_size=14,
)


async def ticks(count: int) -> None:
    """Let everybody else run so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


class World:
    """Users of the same slots, checked whenever one gets a slot."""

    def __init__(self, limit: int) -> None:
        self.slots = Slots("test", limit)
        self.limits = {INTERACTIVE: limit, BACKGROUND: max(1, limit - 1)}
        self.holding: dict[int, int] = defaultdict(int)
        self.asked: dict[int, list[User]] = defaultdict(list)
        self.served: dict[int, list[User]] = defaultdict(list)

    async def use(self, user: User) -> None:
        """Ask for a slot, hold it, give it back."""
        await ticks(user.begins)
        self.asked[user.priority].append(user)
        async with self.slots.hold(user.priority):
            self.served[user.priority].append(user)
            self.holding[user.priority] += 1
            assert self.holding[user.priority] <= self.limits[user.priority]
            assert sum(self.holding.values()) <= self.limits[INTERACTIVE]
            try:
                await ticks(user.holds)
            finally:
                self.holding[user.priority] -= 1

    async def all(self, users: list[User]) -> None:
        """Let them all come to their end."""
        tasks = []
        for user in users:
            tasks.append(asyncio.create_task(self.use(user)))
            if user.cancelled_after is not None:
                tasks.append(asyncio.create_task(self.cancel(tasks[-1], user.cancelled_after)))
        ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 100)
        assert not [error for error in ended if isinstance(error, Exception)]

    @staticmethod
    async def cancel(task: asyncio.Task[None], after: int) -> None:
        """Cancel a task, perhaps twice, perhaps too late."""
        await ticks(after)
        task.cancel()
        await ticks(1)
        task.cancel()


@settings(max_examples=400, deadline=None)
@given(limit=st.integers(1, 4), users=USERS)
def test_no_slot_is_lost_or_lent_twice(limit: int, users: list[User]) -> None:
    async def scenario() -> None:
        world = World(limit)
        await world.all(users)
        for priority in (INTERACTIVE, BACKGROUND):
            served = [id(user) for user in world.served[priority]]
            if limit == 1:  # of several, one that is free is taken at once, while who was given another still wakes up
                assert served == [id(user) for user in world.asked[priority] if id(user) in served]
            assert {id(user) for user in users if user.priority == priority and user.cancelled_after is None} <= set(
                served
            )
        # All of them are there again: so many can be held at once.
        everybody = [asyncio.create_task(hold_for_ever(world.slots)) for _ in range(limit)]
        await ticks(3)
        assert gauge("held", INTERACTIVE) == limit
        for task in everybody:
            task.cancel()
        await asyncio.gather(*everybody, return_exceptions=True)
        assert gauge("held", INTERACTIVE) == gauge("held", BACKGROUND) == 0
        assert gauge("waiting", INTERACTIVE) == gauge("waiting", BACKGROUND) == 0

    asyncio.run(scenario())


async def hold_for_ever(slots: Slots, priority: int = INTERACTIVE) -> None:
    async with slots.hold(priority):
        await asyncio.Event().wait()


def gauge(name: str, priority: int) -> float | None:
    """What is exported of the slots "test"."""
    return REGISTRY.get_sample_value(f"contrafact_slots_{name}", {"resource": "test", "priority": str(priority)})


async def test_a_person_waits_for_nobody_while_background_work_fills_the_rest() -> None:
    slots = Slots("test", 3)
    background = [asyncio.create_task(hold_for_ever(slots, BACKGROUND)) for _ in range(10)]
    await ticks(3)
    assert (gauge("held", BACKGROUND), gauge("waiting", BACKGROUND)) == (2, 8)
    turn = asyncio.timeout(0)  # not a single wait
    async with turn, slots.hold(INTERACTIVE):
        turn.reschedule(None)
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)


async def test_of_one_slot_the_next_turn_is_a_persons() -> None:
    slots, order = Slots("test", 1), []

    async def use(name: str, priority: int) -> None:
        async with slots.hold(priority):
            order.append(name)
            await ticks(2)

    users = [("running", 2), ("scan 1", 2), ("scan 2", 2), ("person 1", 1), ("person 2", 1)]
    await asyncio.gather(*(use(name, priority) for name, priority in users))
    assert order == ["running", "person 1", "person 2", "scan 1", "scan 2"]


async def test_who_goes_first_passes_its_own_kind_only() -> None:
    slots, order = Slots("test", 1), []

    async def use(name: str, priority: int, first: bool = False) -> None:
        async with slots.hold(priority, first=first):
            order.append(name)
            await ticks(2)

    await asyncio.gather(
        *(use("running", 1), use("scan", 2), use("first of the scans", 2, True), use("person", 1)),
        *(use("child", 1, True), use("its brother", 1, True), use("second of the scans", 2, True)),
    )
    assert order == [
        *("running", "child", "its brother", "person"),
        *("first of the scans", "second of the scans", "scan"),
    ]


def test_there_must_be_a_slot() -> None:
    with pytest.raises(ValueError, match="must be a slot"):
        Slots("test", 0)
