"""What a whole stack asks of its stores: at rest, and for each separation; its model is a fake that takes no time."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from contrafact import Client
from contrafact.v1.track_pb2 import Track

from servers.local import Stack
from tests.bench.ledger import Ledger, Reading, table
from tests.bench.priority import Library
from tests.conftest import FAKE_MODELS

REST_SECONDS = float(os.environ.get("REST", "20"))
SEPARATIONS = int(os.environ.get("SEPARATIONS", "20"))
SEGMENTS = (1, 9)
WORKERS = (1, 3)
STORES = ("postgres", "valkey")

Figures = dict[str, float]


def between(before: Reading, after: Reading) -> Figures:
    """What the stores did."""
    return {
        "transactions": float(after.transactions - before.transactions),
        "commands": float((after.commands - before.commands).total()),
        **{f"{name}_cpu_ms": 1e3 * (after.cpu[name] - before.cpu[name]) for name in STORES},
    }


async def at_rest(ledger: Ledger) -> Figures:
    """What is done each second when there is nothing to do."""
    before = await ledger.read()
    await asyncio.sleep(REST_SECONDS)
    after = await ledger.read()
    return {name: value / (after.at - before.at) for name, value in between(before, after).items()}


async def separated(client: Client, ledger: Ledger, tracks: list[Track], rest: Figures) -> Figures:
    """What each separation takes besides."""
    before, began = await ledger.read(), time.monotonic()
    for track in tracks:
        await (await client.separate(track)).wait()
    took = time.monotonic() - began
    after = await ledger.read()
    found = between(before, after)
    seconds = after.at - before.at
    return {
        "seconds": took / len(tracks),
        **{name: max(0.0, value - rest[name] * seconds) / len(tracks) for name, value in found.items()},
    }


async def measured(folder: Path) -> dict[str, Any]:
    """Per second at rest, of the first worker with all else and of each further one; per separation by its length."""
    rests: list[Figures] = []
    jobs: dict[int, Figures] = {}
    for workers in WORKERS:
        stack = Stack(folder / f"{workers}", workers=workers, model_repository=FAKE_MODELS, weights=False)
        async with stack, Client(stack.api_address) as client, Ledger(stack) as ledger:
            library = Library(client, folder)
            await (await client.separate(await library.track(1))).wait()  # loads the model
            rests.append(await at_rest(ledger))
            if workers == WORKERS[0]:
                for segments in SEGMENTS:
                    tracks = [await library.track(segments) for _ in range(SEPARATIONS)]
                    jobs[segments] = await separated(client, ledger, tracks, rests[0])
    one, many = rests
    each = {name: max(0.0, many[name] - one[name]) / (WORKERS[1] - WORKERS[0]) for name in one}
    few, most = (jobs[segments] for segments in SEGMENTS)
    segment = {name: max(0.0, most[name] - few[name]) / (SEGMENTS[1] - SEGMENTS[0]) for name in few}
    found = {
        "stack at rest, a second": one,
        "one more worker at rest, a second": each,
        f"separation of {SEGMENTS[0]} segment": few,
        f"separation of {SEGMENTS[1]} segments": most,
        "one more segment": segment,
    }
    names = list(one)
    table([["", *names], *([what, *(entry[name] for name in names)] for what, entry in found.items())])
    return {what: {name: round(value, 3) for name, value in entry.items()} for what, entry in found.items()}
