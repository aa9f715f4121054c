"""What the stores of a stack are asked, and what that costs them."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import psutil
from redis.asyncio import Redis

from servers.local import Stack
from servers.platform.settings import Settings
from servers.storage.database import Pool, connect
from servers.storage.migrate import migrate
from tests.conftest import stack_settings

STATISTICS_SECONDS = 11.0  # after which PostgreSQL has counted what idle connections did: it takes up to ten
_IGNORED = re.compile(r"cmdstat_(info|ping|auth|hello|client\S*|function\S*|command\S*|config\S*)$")


@asynccontextmanager
async def stores(folder: Path) -> AsyncIterator[tuple[Stack, Settings, Pool]]:
    """PostgreSQL with its tables, and Valkey; nothing else runs."""
    async with Stack(folder, only={"postgres", "valkey"}) as stack:
        settings = stack_settings(stack)
        await asyncio.to_thread(migrate, settings.database_url)
        pool = await connect(settings)
        try:
            yield stack, settings, pool
        finally:
            await pool.close()


def tree_cpu(pid: int) -> float:
    """CPU seconds of a process and its children, those that have ended included."""
    times = psutil.Process(pid).cpu_times()
    spent: float = times.user + times.system + times.children_user + times.children_system
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            spent += sum(child.cpu_times()[:2])
    return spent


@dataclass(frozen=True)
class Reading:
    """All counters at one moment.

    Attributes:
        at: Monotonic seconds.
        transactions: Of PostgreSQL; a statement outside of one is one.
        commands: Of Redis, by name.
        cpu: CPU seconds by the stack's names.
    """

    at: float
    transactions: int
    commands: Counter[str]
    cpu: dict[str, float]

    def since(self, before: Reading, units: float) -> dict[str, Any]:
        """What was done between two readings, for each of so many ``units``."""
        commands = Counter({name: number - before.commands[name] for name, number in self.commands.items()})
        return {
            "transactions": round((self.transactions - before.transactions) / units, 2),
            "commands": round(commands.total() / units, 2),
            "commands_by_name": {name: round(number / units, 2) for name, number in commands.most_common(8) if number},
            "cpu_ms": {name: round(1e3 * (self.cpu[name] - before.cpu[name]) / units, 3) for name in self.cpu},
        }


class Ledger:
    """Reads the counters of a stack's PostgreSQL, Redis and processes; used as an asynchronous context manager."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._settings = stack_settings(stack)

    async def __aenter__(self) -> Ledger:
        self._redis = Redis.from_url(self._settings.redis_url)
        self._database = await asyncpg.connect(self._settings.database_url)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._database.close()
        await self._redis.aclose()

    async def read(self) -> Reading:
        """All counters, up to date: this takes as long as PostgreSQL needs for that."""
        cpu = {name: tree_cpu(child.pid) for name, child in self._stack.processes.items() if child.running}
        at = time.monotonic()
        commands = await self._commands()
        await asyncio.sleep(STATISTICS_SECONDS)
        transactions = await self._database.fetchval(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        )
        return Reading(at, int(transactions), commands, cpu)

    async def _commands(self) -> Counter[str]:
        found: dict[str, dict[str, int]] = await self._redis.info("commandstats")
        return Counter({name[8:]: entry["calls"] for name, entry in found.items() if not _IGNORED.match(name)})

    async def redis_bytes(self) -> int:
        """Memory that Redis uses for its data."""
        return int((await self._redis.info("memory"))["used_memory"])

    async def table_bytes(self, table: str) -> tuple[int, int]:
        """Bytes of a table's rows and of its indexes."""
        row = await self._database.fetchrow("SELECT pg_table_size($1::regclass), pg_indexes_size($1::regclass)", table)
        assert row is not None
        return int(row[0]), int(row[1])


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile in ms."""
    middle, slow = np.percentile(seconds, (50, 99))
    return {"median_ms": round(1e3 * float(middle), 2), "p99_ms": round(1e3 * float(slow), 2)}


def table(rows: Sequence[Sequence[object]]) -> None:
    """Print rows, the first of which is the head, in columns."""
    texts = [[f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), flush=True)
