"""What clean-ups find and remove."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from servers.platform.settings import Settings
from servers.storage.database import Pool
from servers.storage.objects import ObjectStore

PAGE = 1000  # of what is looked at in one go
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Stores:
    """Where clean-ups look; ``settings`` say how long things are kept."""

    pool: Pool
    objects: ObjectStore
    settings: Settings


@dataclass(slots=True)
class Finding:
    """One kind of thing that nobody needs, or that is missing.

    ``bytes`` are those of all ``found``, as far as they are known; ``examples`` are names of a few.
    """

    what: str
    found: int = 0
    bytes: int = 0
    removed: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, things: Iterable[tuple[str, int]], *, removed: bool) -> None:
        """Count things, each a name and a size in bytes."""
        for name, size in things:
            self.found += 1
            self.bytes += size
            self.removed += removed
            if len(self.examples) < _EXAMPLES:
                self.examples.append(name)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


# Called with whether nothing is to be changed.
CleanUp = Callable[[Stores, bool], Awaitable[list[Finding]]]
