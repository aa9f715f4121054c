"""What is awaited to its end, whoever is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from servers.platform.tasks import to_the_end


class Work:
    """Something that ends when it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.go_on, self.ended, self._error = asyncio.Event(), False, error

    async def run(self) -> str:
        await self.go_on.wait()
        self.ended = True
        if self._error is not None:
            raise self._error
        return "done"


async def test_what_comes_of_it() -> None:
    for error in (None, LookupError("lost")):
        work = Work(error)
        waiting = asyncio.create_task(to_the_end(work.run()))
        await asyncio.sleep(0)
        work.go_on.set()
        (found,) = await asyncio.gather(waiting, return_exceptions=True)
        assert found == (error or "done")


@pytest.mark.parametrize("error", [None, LookupError("lost")])
async def test_who_was_cancelled_hears_of_that_at_the_end(error: Exception | None) -> None:
    work = Work(error)
    waiting = asyncio.create_task(to_the_end(work.run()))
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.wait([waiting], timeout=0.01)
    assert not waiting.done()
    work.go_on.set()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await waiting
    assert work.ended
    assert waiting.cancelled()
    assert cancelled.value.__cause__ is error


async def test_work_that_is_cancelled_itself_is_so() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await to_the_end(work())
