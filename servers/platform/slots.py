"""How many may use something at once, and who is next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from prometheus_client import Gauge

INTERACTIVE, BACKGROUND = 1, 2
# In which turns are given: priorities, and of each those who go first.
_TURNS = [(priority, first) for priority in (INTERACTIVE, BACKGROUND) for first in (True, False)]

_HELD = Gauge("contrafact_slots_held", "Slots of a limited resource that are held.", ["resource", "priority"])
_WAITING = Gauge("contrafact_slots_waiting", "Waiting for a slot of a limited resource.", ["resource", "priority"])


class Slots:
    """A semaphore that lets interactive work pass background work, and each in the order in which it came.

    Of either, those who go first pass those who do not, in the order in which they came, too.

    Background work never holds the last of several slots: however much of it there is, interactive work that finds
    nobody of its own kind before it begins at once.

    Args:
        resource: What is limited; a label of metrics.
        limit: How many may hold a slot at once; at least 1.
    """

    def __init__(self, resource: str, limit: int) -> None:
        if limit < 1:
            raise ValueError("there must be a slot")
        self._resource = resource
        self._limits = {INTERACTIVE: limit, BACKGROUND: max(1, limit - 1)}
        self._held = {INTERACTIVE: 0, BACKGROUND: 0}
        self._waiting: dict[tuple[int, bool], deque[asyncio.Future[None]]] = {turn: deque() for turn in _TURNS}

    @asynccontextmanager
    async def hold(self, priority: int, *, first: bool = False) -> AsyncIterator[None]:
        """Wait for a slot and hold it; ``priority``: INTERACTIVE or BACKGROUND; ``first``: before those who do not."""
        await self._take(priority, first)
        try:
            yield
        finally:
            self._give_back(priority)

    async def _take(self, priority: int, first: bool) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting[priority, first]
        waiting.append(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the slot came too late
                self._give_back(priority)
            else:
                with suppress(ValueError):  # _admit may have met it before this task heard of its cancellation
                    waiting.remove(turn)
                self._report()
            raise

    def _give_back(self, priority: int) -> None:
        self._held[priority] -= 1
        self._admit()

    def _admit(self) -> None:
        """Give free slots to those who are next. A slot is theirs from here on, not from when they notice."""
        for priority, first in _TURNS:
            waiting = self._waiting[priority, first]
            while waiting and self._is_free(priority):
                turn = waiting.popleft()
                if not turn.cancelled():
                    self._held[priority] += 1
                    turn.set_result(None)
        self._report()

    def _is_free(self, priority: int) -> bool:
        total = self._held[INTERACTIVE] + self._held[BACKGROUND]
        return total < self._limits[INTERACTIVE] and self._held[priority] < self._limits[priority]

    def _report(self) -> None:
        for priority in (INTERACTIVE, BACKGROUND):
            _HELD.labels(self._resource, priority).set(self._held[priority])
            _WAITING.labels(self._resource, priority).set(
                sum(len(self._waiting[priority, first]) for first in (True, False))
            )
