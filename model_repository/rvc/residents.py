"""What the voice pool is told and counts, and by which strategy voices leave it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Protocol, TypeVar

from .loader import Key

MAX_CAPACITY = 1000
MAX_IDLE_SECONDS = 7 * 86_400.0
MAX_MEMORY_BYTES = 1 << 40


class Sized(Protocol):
    """What the pool needs of a voice."""

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        ...


V = TypeVar("V", bound=Sized)


@dataclass(frozen=True)
class PoolSettings:
    """How the pool works.

    Args:
        enabled: whether voices stay; if not, each is loaded for those who wait for it and leaves when used once.
        capacity: most voices at once, 1..1000.
        idle_seconds: a voice that nobody asked for in that time leaves; up to 7 days.
        strategy: who leaves a full pool, a key of `STRATEGIES`.
        memory_bytes: of all voices together, up to 1 TiB.

    Raises:
        ValueError: a value is none of these.
    """

    enabled: bool = True
    capacity: int = 10
    idle_seconds: float = 1800.0
    strategy: str = "lru"
    memory_bytes: int = 8 << 30

    def __post_init__(self) -> None:
        if not isinstance(self.enabled, bool):
            raise ValueError(f"enabled is {self.enabled!r:.80}, must be true or false")
        if type(self.capacity) is not int or not 1 <= self.capacity <= MAX_CAPACITY:
            raise ValueError(f"capacity is {self.capacity!r:.80}, must be a whole number, 1..{MAX_CAPACITY}")
        if type(self.idle_seconds) not in (int, float) or not 0 < self.idle_seconds <= MAX_IDLE_SECONDS:
            raise ValueError(f"idle_seconds is {self.idle_seconds!r:.80}, must be above 0, up to {MAX_IDLE_SECONDS:g}")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy is {self.strategy!r:.80}, must be one of: {', '.join(STRATEGIES)}")
        if type(self.memory_bytes) is not int or not 1 <= self.memory_bytes <= MAX_MEMORY_BYTES:
            raise ValueError(
                f"memory_bytes is {self.memory_bytes!r:.80}, must be a whole number, 1..{MAX_MEMORY_BYTES}"
            )

    def changed(self, changes: Mapping[str, Any]) -> PoolSettings:
        """These settings with some others; ValueError if one is unknown or wrong."""
        known = [field.name for field in fields(self)]
        if unknown := set(changes) - set(known):
            raise ValueError(f"unknown settings of the pool: {sorted(unknown)!r:.80}; there are: {', '.join(known)}")
        return replace(self, **changes)


@dataclass
class Counters:
    """What has happened since the process began. ``inserted`` is ``evicted``, ``expired`` and what is warm together.

    reused: uses of voices after each one's first use. inserted: voices loaded. evicted: had to leave, for another, on
    demand, or because the pool is disabled. expired: left because nobody asked for them. failed: could not be loaded.
    load_seconds: spent on those inserted.
    """

    reused: int = 0
    inserted: int = 0
    evicted: int = 0
    expired: int = 0
    failed: int = 0
    load_seconds: float = 0.0


@dataclass
class Entry(Generic[V]):
    """A warm voice: ``used`` or loaded last at, ``asked`` for last at (also by `Pool.warm`), in the clock's seconds."""

    key: Key
    voice: V
    bytes: int
    loaded: float
    used: float
    asked: float
    load_seconds: float
    uses: int = 0


def _least_used(entries: Sequence[Entry[Any]]) -> Entry[Any]:
    return min(entries[: (len(entries) + 1) // 2], key=lambda entry: entry.uses)


# Of voices in the order of their last use, the one to leave. Loading ahead is no use but renews the time to live: that
# is the difference between the first two.
STRATEGIES: dict[str, Callable[[Sequence[Entry[Any]]], Entry[Any]]] = {
    "lru": lambda entries: entries[0],
    "ttl": lambda entries: min(entries, key=lambda entry: entry.asked),
    "lru+lfu": _least_used,
}
