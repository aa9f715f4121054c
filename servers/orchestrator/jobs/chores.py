"""Periodic work that is done once per interval in the whole cluster, however many workers there are.

The table ``chores`` has a row for each. Whoever moves its ``due_at`` on does it, and moves it on again and again while
he is at it; if he dies, it is due a moment later.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from servers.platform import telemetry
from servers.platform.tasks import Background, to_the_end, together
from servers.storage.database import Pool

_SHORTEST_NAP_SECONDS = 0.05
_HELD_SECONDS = 4.0  # by whoever does it, from his last sign of life
_HELD = dt.timedelta(seconds=_HELD_SECONDS)


@dataclass(frozen=True, slots=True)
class Chore:
    """Something to be done again and again; times in seconds.

    ``work`` returns what it did, as JSON. What it raises is logged, and the next interval comes all the same.
    """

    name: str
    interval: float
    deadline: float
    work: Callable[[], Awaitable[Mapping[str, Any]]]


class Chores(Background):
    """Does chores, in turn with all others of its kind; used as a context manager."""

    def __init__(self, pool: Pool, chores: Sequence[Chore]) -> None:
        self._pool = pool
        self._chores = chores

    async def _work(self) -> None:
        await together(*(self._keep_doing(chore) for chore in self._chores))

    async def _keep_doing(self, chore: Chore) -> None:
        while True:
            try:
                nap = await self._do_if_due(chore)
            except Exception as error:  # the table cannot be reached, say: the next interval must come
                telemetry.log().warning("chores out of reach", chore=chore.name, error=type(error).__name__)
                nap = chore.interval
            # Not all at the same moment: who finds it due does it, the others have asked for nothing.
            await asyncio.sleep(max(_SHORTEST_NAP_SECONDS, min(nap, chore.interval)) * random.uniform(1, 1.1))

    async def _do_if_due(self, chore: Chore) -> float:
        """Do a chore unless it is too early or somebody is at it; returns in how many seconds to ask again."""
        row = await self._pool.fetchrow(
            """WITH taken AS (
                   UPDATE chores SET due_at = now() + $2::interval WHERE name = $1 AND due_at <= now() RETURNING due_at
               )
               SELECT (SELECT due_at FROM taken) AS token, extract(epoch FROM due_at - now())::float8 AS due_in
               FROM chores WHERE name = $1""",
            chore.name,
            _HELD,
        )
        if row is None:
            await self._pool.execute("INSERT INTO chores (name) VALUES ($1) ON CONFLICT DO NOTHING", chore.name)
            return 0.0
        if row["token"] is None:
            return float(row["due_in"])
        holding = _Holding(self._pool, chore, row["token"])
        async with holding:
            report = await _done(chore)
        # The token: whoever took over from us because we were late decides when it is due again.
        await self._pool.execute(
            """UPDATE chores SET due_at = now() + $3::interval, ran_at = now(), report = $4
               WHERE name = $1 AND due_at = $2""",
            chore.name,
            holding.token,
            dt.timedelta(seconds=chore.interval),
            report,
        )
        return chore.interval


class _Holding(Background):
    """Keeps others from a chore that is being done; ``token`` is when it is due unless that goes on."""

    def __init__(self, pool: Pool, chore: Chore, token: dt.datetime) -> None:
        self.token = token
        self._pool = pool
        self._chore = chore

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(_HELD_SECONDS / 3)
            try:
                await to_the_end(self._beat())  # or the token that is known would not be the one that holds
            except Exception as error:  # whatever it is, the next beat must come
                telemetry.log().warning("chore not held", chore=self._chore.name, error=type(error).__name__)

    async def _beat(self) -> None:
        token = await self._pool.fetchval(
            "UPDATE chores SET due_at = now() + $3::interval WHERE name = $1 AND due_at = $2 RETURNING due_at",
            self._chore.name,
            self.token,
            _HELD,
        )
        self.token = token or self.token  # none: somebody has taken over, and twice does no harm


async def _done(chore: Chore) -> Mapping[str, Any]:
    """Do a chore; returns its report, or its error as one."""
    try:
        async with asyncio.timeout(chore.deadline):
            return await chore.work()
    except Exception as error:  # whatever it is, the next interval must come
        telemetry.log().warning("chore not done", chore=chore.name, error=type(error).__name__, detail=str(error))
        return {"error": f"{type(error).__name__}: {error}"}
