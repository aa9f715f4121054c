"""Grain libraries that were used last, decoded."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

from prometheus_client import Gauge

from servers.grains.library import Library

_ARRAYS = [each for each in fields(Library) if each.name not in ("sample_rate", "channels")]
_BYTES = Gauge("contrafact_grain_library_bytes", "Memory of the grain libraries that are kept.")


@dataclass(slots=True, eq=False)
class Place:
    """Where a library is kept.

    Attributes:
        library: None: it is not here yet.
    """

    library: Library | None = None
    users: int = 0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def filled(self, load: Callable[[], Awaitable[Library]]) -> Library:
        """The library; if it is not here, by ``load``, which is done by one at a time.

        Raises:
            Exception: what ``load`` raises; the next who asks tries again.
        """
        async with self._lock:
            if self.library is None:
                self.library = await load()
            return self.library

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        library = self.library
        return 0 if library is None else sum(getattr(library, each.name).nbytes for each in _ARRAYS)


class Libraries:
    """Keeps decoded libraries, those used last, and all that are in use.

    Args:
        most_bytes: that those may take that are not in use, with those that are.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._places: OrderedDict[str, Place] = OrderedDict()

    @contextmanager
    def place(self, sha256: str) -> Iterator[Place]:
        """The place of the library whose bytes have this SHA-256; it is in use until the context ends."""
        place = self._places.setdefault(sha256, Place())
        self._places.move_to_end(sha256)
        place.users += 1
        try:
            yield place
        finally:
            place.users -= 1
            self._tidy()

    @property
    def nbytes(self) -> int:
        """Memory that all take."""
        return sum(place.nbytes for place in self._places.values())

    def _tidy(self) -> None:
        total = self.nbytes
        for sha256, place in list(self._places.items()):
            if not place.users and (place.library is None or total > self._most_bytes):
                total -= place.nbytes
                del self._places[sha256]
        _BYTES.set(total)
