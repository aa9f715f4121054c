"""What asyncio lacks for tasks that hold something."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``, and only then let this task be cancelled; grpc may ask for it more than once.

    Raises:
        asyncio.CancelledError: this task was cancelled meanwhile, whether or not ``work`` failed: that is its cause.
        Exception: what ``work`` raises.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from None if task.cancelled() else task.exception()
    return task.result()


async def together(*works: Coroutine[Any, Any, Any]) -> None:
    """Await all ``works``; when one fails, stop and await the others, and raise its error."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as group_error:
        raise group_error.exceptions[0] from None


async def stopped(task: asyncio.Task[Any]) -> None:
    """Cancel a task and await its end, whatever that is; a cancellation of the caller's own is not lost in it."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error


class Background(ABC):
    """Something that works by itself while it is used as a context manager."""

    _task: asyncio.Task[None] | None = None

    @abstractmethod
    async def _work(self) -> None:
        """Work until cancelled."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            await stopped(self._task)


class Streams(AsyncExitStack):
    """Streams made of one another, closed in the opposite order when the context ends."""

    async def opened(self, stream: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """``stream``, from now on to be closed."""
        return await self.enter_async_context(aclosing(stream))


@dataclass(frozen=True, slots=True)
class _End:
    """The end of a stream, with what ended it if it was an error."""

    error: Exception | None


@asynccontextmanager
async def unzipped(
    rows: AsyncIterator[tuple[T, ...]], columns: int, *, bound: int = 2
) -> AsyncIterator[tuple[AsyncIterator[T], ...]]:
    """Read the columns of a stream of tuples as streams of their own, each at its own pace.

    Args:
        rows: The stream, read by a task that lives as long as the context. An error of it is raised in every column.
            Closing it is the caller's business.
        columns: Items of each tuple.
        bound: How many tuples ahead of a column's reader ``rows`` is read, for the sake of other columns' readers.
    """
    queues: list[asyncio.Queue[T | _End]] = [asyncio.Queue(bound) for _ in range(columns)]

    async def feed() -> None:
        end = _End(None)
        try:
            async for row in rows:
                for queue, item in zip(queues, row, strict=True):
                    await queue.put(item)
        except Exception as error:
            end = _End(error)
        for queue in queues:
            await queue.put(end)

    async def read(queue: asyncio.Queue[T | _End]) -> AsyncIterator[T]:
        while not isinstance(item := await queue.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    feeding = asyncio.create_task(feed())
    try:
        yield tuple(read(queue) for queue in queues)
    finally:
        await stopped(feeding)
