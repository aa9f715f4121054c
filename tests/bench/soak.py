"""A stack under mixed load for a long time: does anything that it holds grow, does anything fail?

    MINUTES=30 python -m tests.bench soak

Callers of all kinds (``tests.fault.load``) have tracks of up to four segments separated and covered, listen, watch,
poll, cancel, and check all that they get; another imports a voice, sings with it and deletes it. Every minute all
tracks and covers are deleted, and jobs are forgotten two minutes after their end, so that nothing should grow.
The exit status is 1 if something did, if a server ended, or if a caller did not get what it should.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from contrafact import Client

from servers.local import Stack
from servers.storage.database import connect
from servers.storage.objects import ObjectStore
from tests.bench.common import keep
from tests.bench.ledger import table
from tests.bench.levels import Levels, Sampler, trends
from tests.conftest import FAKE_MODELS, stack_settings
from tests.fault.load import Load
from tests.orchestrator.voice_files import sample, shelve, weights

MINUTES = float(os.environ.get("MINUTES", "30"))
SEED = int(os.environ.get("SEED", "0"))
WORKERS = int(os.environ.get("WORKERS", "2"))
SAMPLE_SECONDS = min(10.0, MINUTES * 1.5)
CLEAR_SECONDS = min(60.0, MINUTES * 20)
VOICE_SECONDS = min(45.0, MINUTES * 15)
WARM = 0.2  # of the time, not looked at
KEPT_DAYS = 120 / 86_400
GAINS = (0.5, 0.8, 1.0)
LIVE_RATE = 16_000
_PATIENCE_SECONDS = 300.0

SETTINGS = {
    "FAKE_DELAY": "0.05",
    "FAKE_RVC_DELAY": "0.05",
    "JOB_RETENTION_DAYS": f"{KEPT_DAYS:.6f}",
    "EVENT_RETENTION_DAYS": f"{KEPT_DAYS:.6f}",
    "TIDY_SECONDS": "10",
    "ORPHANS_SECONDS": "60",
}


async def voices(stack: Stack) -> dict[str, float]:
    """Voices that stay, by name, with their gains."""
    settings = stack_settings(stack)
    pool, objects = await connect(settings), ObjectStore(settings)
    try:
        return {f"voices/{(await shelve(pool, objects, gain=gain))['id']}": gain for gain in GAINS}
    finally:
        await objects.close()
        await pool.close()


class Soak:
    """What goes on besides the callers, and what was seen."""

    def __init__(self, stack: Stack, client: Client, load: Load) -> None:
        self.samples: list[tuple[float, Levels]] = []
        self.problems: list[str] = []
        self.sung = 0
        self._stack = stack
        self._client = client
        self._load = load
        self._began = time.monotonic()

    async def run(self) -> None:
        """All of it, for as long as it is to last."""
        tasks = [asyncio.create_task(each) for each in (self._clear(), self._sing(), self._look())]
        try:
            done, _ = await asyncio.wait(tasks, timeout=MINUTES * 60, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:  # none of them ends by itself
            self.problems.append(f"given up: {task.exception()!r}")
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await self._load.pause()

    async def _look(self) -> None:
        async with Sampler(self._stack) as sampler:
            while True:
                self.samples.append((time.monotonic() - self._began, await sampler.sample()))
                await asyncio.sleep(SAMPLE_SECONDS)

    async def _clear(self) -> None:
        while True:
            await asyncio.sleep(CLEAR_SECONDS)
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._load.pause()
                await self._load.clear()
            self._load.resume()

    async def _sing(self) -> None:
        """Import a voice, sing two seconds with it, delete it."""
        tone = (0.3 * np.sin(2 * np.pi * 220 / LIVE_RATE * np.arange(2 * LIVE_RATE))).astype("<f4")

        async def blocks() -> AsyncIterator[bytes]:
            for start in range(0, len(tone), LIVE_RATE // 4):
                yield tone[start : start + LIVE_RATE // 4].tobytes()

        while True:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                voice = await self._client.import_voice(weights(), sample=sample(), display_name="Soaked")
                heard = 0
                async with self._client.convert_voice(voice, blocks(), LIVE_RATE) as live:
                    async for block in live:
                        heard += len(block)
                if heard != tone.nbytes:
                    self.problems.append(f"{heard} of {tone.nbytes} bytes of a live voice were heard")
                await self._client.delete_voice(voice)
            self.sung += 1
            await asyncio.sleep(VOICE_SECONDS)


async def soaked(folder: Path) -> dict[str, Any]:
    """The whole of it."""
    environment = {f"CONTRAFACT_{name}": value for name, value in SETTINGS.items()}
    (folder / "callers").mkdir()
    stack = Stack(
        folder / "stack", workers=WORKERS, model_repository=FAKE_MODELS, weights=False, environment=environment
    )
    async with stack, Client(stack.api_address) as client:
        load = Load(stack.api_address, await voices(stack), folder / "callers", Random(SEED))
        async with load:
            soak = Soak(stack, client, load)
            await soak.run()
        restarts = {name: child.restarts for name, child in stack.processes.items() if child.restarts}
    found = trends(soak.samples, WARM * MINUTES * 60)
    problems = [*soak.problems, *(what for _, what in load.lost), *(f"failed: {what}" for _, what in load.failed)]
    problems += [f"{name} ended {times} times" for name, times in restarts.items()]
    # RSS counts what is shared once for each who has touched it: PSS and USS say whether that grows.
    rising = [name for name, each in found.items() if not each.flat and not name.endswith("rss MiB")]
    table(
        [
            ["level", "start", "end", "per hour", "noise", "flat"],
            *([name, *asdict(each).values()] for name, each in found.items()),
        ]
    )
    return {
        "minutes": MINUTES,
        "workers": WORKERS,
        "jobs": len(load.asked),
        "voices_imported_and_deleted": soak.sung,
        "samples": len(soak.samples),
        "criterion": "the fitted line rises by at most 5 % of the level, twice the noise, or 1, whichever is most",
        "rising": rising,
        "problems": problems[:50],
        "levels": {name: asdict(each) for name, each in found.items()},
    }


def measure() -> None:
    """Print and keep what was seen; end with status 1 if it was not as it should be."""
    with tempfile.TemporaryDirectory(prefix="contrafact-soak-") as folder:
        found = asyncio.run(soaked(Path(folder)))
    keep("soak", found)
    if found["rising"] or found["problems"]:
        sys.exit(1)
