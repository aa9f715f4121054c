"""How often, and how patiently, a broken stream is taken up again."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from contrafact._errors import ContrafactError, client_closed

if TYPE_CHECKING:
    from contrafact._channel import Connection

RESUMABLE = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED"})
STREAM_RESUMABLE = RESUMABLE | {"CANCELLED"}  # a draining server or a proxy ends streams so
# Another stream took over; a chunk was damaged; the broken stream committed more after it was asked.
UPLOAD_RESUMABLE = STREAM_RESUMABLE | {"ABORTED", "DATA_LOSS", "OUT_OF_RANGE"}


@dataclass(frozen=True)
class Retry:
    """Bounds of automatic resumption.

    Attributes:
        attempts: failures in a row without any progress after which the error is raised, at least 1.
        first: longest wait before the first new attempt, in seconds; it doubles with each failure.
        longest: longest wait of all, in seconds.
    """

    attempts: int = 8
    first: float = 0.2
    longest: float = 5.0


class Attempts:
    """Counts failures in a row without progress, and waits between them with full jitter."""

    def __init__(self, connection: Connection, resumable: frozenset[str] = STREAM_RESUMABLE) -> None:
        self._connection = connection
        self._retry = connection.retry
        self._resumable = resumable
        self._failures = 0

    def progressed(self) -> None:
        """Begin to count anew."""
        self._failures = 0

    async def failed(self, error: ContrafactError) -> None:
        """Wait before the next attempt, or raise ``error`` when there should be none."""
        broken = (
            error.status == "INTERNAL" and "RST_STREAM" in error.message
        )  # how a cut looks behind a proxy
        self._failures += 1
        if not (broken or error.status in self._resumable) or self._failures >= self._retry.attempts:
            raise error
        if self._connection.closed:
            raise client_closed() from None
        longest = min(self._retry.longest, self._retry.first * 2 ** (self._failures - 1))
        await asyncio.sleep(max(error.retry_after, random.uniform(longest / 2, longest)))
