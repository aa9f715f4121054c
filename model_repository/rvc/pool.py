"""The voice pool of one model process: which voices are warm. Identity lives elsewhere; this only knows files."""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .voice import Voice

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass
class Statistics:
    """Totals since the process began."""

    reused: int = 0
    inserted: int = 0
    evicted: int = 0
    load_seconds: float = 0.0


class Pool:
    """Voices by name, the least recently used one leaves when it is full, idle ones when they are too old.

    Not for several threads: Triton calls a model instance from one.

    Args:
        folder: of ``NAME.pth`` and, for some, ``NAME.index``.
        load: makes a voice of the two paths; the second is None if there is no index.
        capacity: most voices at once, at least 1.
        idle_seconds: after which an unused voice leaves.
        clock: seconds.
    """

    def __init__(
        self,
        folder: Path,
        load: Callable[[Path, Path | None], Voice],
        capacity: int = 10,
        idle_seconds: float = 1800.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, must be at least 1")
        self._folder, self._load, self._capacity = folder, load, capacity
        self._idle, self._clock = idle_seconds, clock
        self._warm: OrderedDict[str, tuple[Voice, float, tuple[int, int]]] = OrderedDict()
        self.statistics = Statistics()

    def get(self, name: str) -> Voice:
        """The voice, loaded if it is cold or its file has changed.

        Raises:
            ValueError: there is no such voice, or its file is refused.
        """
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r:.80} is no name of a voice")
        weights, index = self._folder / f"{name}.pth", self._folder / f"{name}.index"
        self.expire()
        try:
            status = weights.stat()
        except OSError:
            self.evict(name)
            raise ValueError(f"there is no voice {name!r} here") from None
        version = (status.st_mtime_ns, status.st_size)
        if name in self._warm and self._warm[name][2] == version:
            voice = self._warm[name][0]
            self.statistics.reused += 1
        else:
            self.evict(name)
            begin = self._clock()
            voice = self._load(weights, index if index.exists() else None)
            self.statistics.inserted += 1
            self.statistics.load_seconds += self._clock() - begin
        self._warm[name] = (voice, self._clock(), version)
        self._warm.move_to_end(name)
        while len(self._warm) > self._capacity:
            self.evict(next(iter(self._warm)))
        return voice

    def evict(self, name: str) -> None:
        """Forget a voice, if it is warm."""
        if self._warm.pop(name, None) is not None:
            self.statistics.evicted += 1

    def expire(self) -> None:
        """Forget voices that were not used for too long."""
        for name in [n for n, (_, used, _) in self._warm.items() if self._clock() - used > self._idle]:
            self.evict(name)

    def names(self) -> list[str]:
        """Warm voices, the least recently used first."""
        return list(self._warm)
