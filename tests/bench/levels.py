"""What the processes and stores of a running stack hold, again and again, and whether that grows."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import numpy as np
import psutil
from redis.asyncio import Redis

from servers.local import Stack
from tests.bench.processes import stubs
from tests.conftest import stack_settings

RISE = 0.05  # of the level: less is flat
_MIB = 2**20
_SHARED = Path("/dev/shm")

Levels = dict[str, float]


def of_processes(stack: Stack) -> Levels:
    """Memory in MiB, open files, threads and children of each process by name; PostgreSQL's are one with their parent.

    Unique and proportional set size (USS, PSS) are what Linux says of it: the first is what would be free if that
    process ended, the second has its share of what is shared.
    """
    models = stubs(stack)
    pids = {name: [child.pid] for name, child in stack.processes.items() if child.running}
    pids |= {name: [pid] for name, pid in models.items()}
    with suppress(psutil.Error):
        pids["postgres"] += [each.pid for each in psutil.Process(pids["postgres"][0]).children(recursive=True)]
    found: Levels = {}
    for name, members in pids.items():
        totals = dict.fromkeys(("rss MiB", "pss MiB", "uss MiB", "files", "threads", "children"), 0.0)
        for pid in members:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                memory = process.memory_full_info()
                totals["rss MiB"] += memory.rss / _MIB
                totals["pss MiB"] += memory.pss / _MIB
                totals["uss MiB"] += memory.uss / _MIB
                totals["files"] += process.num_fds()
                totals["threads"] += process.num_threads()
                totals["children"] += len(process.children())
        found |= {f"{name} {what}": value for what, value in totals.items()}
    return found


def of_shared_memory(stack: Stack) -> Levels:
    """Regions that the stack's Triton and its workers share, and their size."""
    prefixes = [stack._folder.shm_prefix, *(f"contrafact-{child.pid}-" for child in stack.processes.values())]
    sizes = []
    for path in _SHARED.iterdir():
        if path.name.startswith(tuple(prefixes)):
            with suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
    return {"shared memory regions": len(sizes), "shared memory MiB": sum(sizes) / _MIB}


class Sampler:
    """Takes samples of a stack; used as an asynchronous context manager."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._settings = stack_settings(stack)

    async def __aenter__(self) -> Sampler:
        self._redis = Redis.from_url(self._settings.redis_url)
        self._database = await asyncpg.connect(self._settings.database_url)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._database.close()
        await self._redis.aclose()

    async def sample(self) -> Levels:
        """All levels now."""
        processes = await asyncio.to_thread(of_processes, self._stack)
        database = await self._database.fetchrow(
            """SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
                      pg_database_size(current_database()) AS bytes, (SELECT count(*) FROM jobs) AS jobs"""
        )
        assert database is not None
        redis = await self._redis.info()
        stores = {
            "postgres connections": float(database["connections"]),
            "postgres data MiB": database["bytes"] / _MIB,
            "postgres jobs": float(database["jobs"]),
            "valkey clients": float(redis["connected_clients"]),
            "valkey data MiB": redis["used_memory"] / _MIB,
            "valkey keys": float(redis.get("db0", {}).get("keys", 0)),
        }
        return processes | of_shared_memory(self._stack) | stores


@dataclass(frozen=True)
class Trend:
    """The line that fits a level best (least squares).

    Attributes:
        start, end: Of the level, as medians of the first and the last fifth.
        noise: Standard deviation of what is left without the line.
        flat: Whether the line rises, over the whole time, by no more than ``RISE`` of the mean level, or twice the
            noise, or 1 (thing or MiB). What falls is flat.
    """

    start: float
    end: float
    per_hour: float
    noise: float
    flat: bool


def trend(seconds: Sequence[float], values: Sequence[float]) -> Trend:
    """Of a level at these times."""
    times, levels = np.asarray(seconds), np.asarray(values)
    slope, base = np.polyfit(times, levels, 1)
    noise = float(np.std(levels - slope * times - base))
    rise = float(slope * (times[-1] - times[0]))
    part = max(1, len(levels) // 5)
    return Trend(
        start=round(float(np.median(levels[:part])), 2),
        end=round(float(np.median(levels[-part:])), 2),
        per_hour=round(3600 * float(slope), 2),
        noise=round(noise, 2),
        flat=rise <= max(RISE * float(levels.mean()), 2 * noise, 1.0),
    )


def trends(samples: Sequence[tuple[float, Levels]], warm: float) -> Mapping[str, Trend]:
    """Of every level that each sample has, from that moment on."""
    used = [(at, levels) for at, levels in samples if at >= warm]
    names = [name for name in used[0][1] if all(name in levels for _, levels in used)]
    return {name: trend([at for at, _ in used], [levels[name] for _, levels in used]) for name in names}
