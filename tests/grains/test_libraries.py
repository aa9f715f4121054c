"""The libraries that an engine keeps: which go, which stay, and that none is decoded twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import numpy as np
import pytest

from servers.grains.libraries import Libraries
from servers.grains.library import Library
from tests.grains.sounds import library_of


def made(frames: int = 1000) -> Library:
    return library_of([np.ones(frames, np.float32)], [440.0])


ROOM = 3 * made().audio.nbytes  # for two: their other arrays are far smaller than their audio


class Loader:
    """Loads libraries, and counts."""

    def __init__(self, library: Library | None = None) -> None:
        self.loads = 0
        self._library = library or made()

    async def __call__(self) -> Library:
        self.loads += 1
        await asyncio.sleep(0)
        return self._library


async def used(libraries: Libraries, sha256: str, load: Callable[[], Awaitable[Library]]) -> None:
    with libraries.place(sha256) as place:
        await place.filled(load)


def has(libraries: Libraries, sha256: str) -> bool:
    with libraries.place(sha256) as place:
        return place.library is not None


async def test_those_used_last_are_kept() -> None:
    libraries, load = Libraries(ROOM), Loader()
    for name in ("a", "b", "a", "c"):
        await used(libraries, name, load)
    assert load.loads == 3
    assert libraries.nbytes <= ROOM
    assert [has(libraries, name) for name in "abc"] == [True, False, True]


async def test_one_in_use_is_not_taken_away() -> None:
    libraries = Libraries(ROOM)
    with ExitStack() as held:
        place = held.enter_context(libraries.place("a"))
        library = await place.filled(Loader())
        for name in "bcd":
            await used(libraries, name, Loader())
        assert has(libraries, "a")
        assert place.library is library
    for name in "bc":
        await used(libraries, name, Loader())
    assert not has(libraries, "a")


async def test_one_that_is_larger_than_all_room_is_kept_while_it_is_used() -> None:
    libraries = Libraries(ROOM)
    await used(libraries, "small", Loader())
    with libraries.place("large") as place:
        await place.filled(Loader(made(100_000)))
        assert has(libraries, "large")
    assert not has(libraries, "large")
    assert libraries.nbytes <= ROOM


async def test_without_room_nothing_is_kept() -> None:
    libraries = Libraries(0)
    await used(libraries, "a", Loader())
    assert not has(libraries, "a")
    assert libraries.nbytes == 0


async def test_who_comes_at_once_gets_the_same() -> None:
    libraries, load = Libraries(ROOM), Loader()

    async def library() -> Library:
        with libraries.place("a") as place:
            return await place.filled(load)

    found = await asyncio.gather(*(library() for _ in range(10)))
    assert load.loads == 1
    assert len(set(map(id, found))) == 1


async def test_when_one_fails_the_next_tries() -> None:
    libraries, load = Libraries(ROOM), Loader()
    stuck = asyncio.Event()

    async def fail() -> Library:
        await stuck.wait()
        raise LookupError("no such bytes")

    failing = [asyncio.create_task(used(libraries, "a", fail)) for _ in range(2)]
    await asyncio.sleep(0)
    cancelled, good = failing[0], asyncio.create_task(used(libraries, "a", load))
    await asyncio.sleep(0)
    cancelled.cancel()
    stuck.set()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    with pytest.raises(LookupError):
        await failing[1]
    await good
    assert load.loads == 1
    assert has(libraries, "a")
