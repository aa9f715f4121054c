"""Threads in which an engine works, step by step, the most urgent first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from servers.platform.slots import Slots
from servers.platform.tasks import to_the_end

T = TypeVar("T")


class Stopped(Exception):
    """Nobody waits any more for the work that is made in steps."""


class Turns:
    """Threads in which the steps of all work are made, the most urgent first.

    Args:
        name: of the engine; a label of metrics.
        threads: steps at once.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._name = name
        self._slots = Slots(name, threads)
        self._threads = ThreadPoolExecutor(threads, name)

    async def step(self, priority: int, first: bool, work: Callable[..., T], *args: Any) -> T:
        """Do ``work`` when it is its turn. Once it has begun, it is waited for, whatever happens.

        Args:
            priority: INTERACTIVE or BACKGROUND.
            first: whether it goes before other steps of its priority.
            work: a function, and its arguments.
        """

        async def in_a_thread() -> T:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

        async with self._slots.hold(priority, first=first):
            return await to_the_end(in_a_thread())

    async def steps(self, priority: int, work: Callable[[Callable[[], None]], T]) -> T:
        """Do ``work``, which takes long, in a thread of its own.

        Between its steps it calls what it is given, which lets others go first whose turn it is, and raises
        :class:`Stopped` or ``CancelledError`` if this task was cancelled.

        Args:
            priority: INTERACTIVE or BACKGROUND.
            work: a function.
        """
        loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1, self._name)
        waiting: asyncio.Task[Any] | None = None
        stopped = False
        async with AsyncExitStack() as turn:
            await turn.enter_async_context(self._slots.hold(priority))

            async def next_turn() -> None:
                nonlocal waiting
                if stopped:
                    raise Stopped
                waiting = asyncio.current_task()
                await turn.aclose()
                await turn.enter_async_context(self._slots.hold(priority))

            def pause() -> None:
                asyncio.run_coroutine_threadsafe(next_turn(), loop).result()

            running = loop.run_in_executor(thread, work, pause)
            try:
                return await asyncio.shield(running)
            finally:
                stopped = True
                if waiting is not None:
                    waiting.cancel()
                await to_the_end(asyncio.wait([running]))
                thread.shutdown(wait=False)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False)
