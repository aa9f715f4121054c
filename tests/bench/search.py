"""Search by sound: what the index finds of what there is, how fast, and what it costs to keep.

    SIZE=1000000 python -m tests.bench search

Three owners share the index: one has 78 % of the tracks, one 20 %, one 2 %. Each query is asked of all tracks of an
owner and of the tenth and the hundredth that passes a filter, in three ways: comparing each track ("exact"), by the
index alone ("index"), and as a server chooses ("chosen"). Recall is the share of the twenty most similar, after
float32 vectors, that was found. Vectors are of clusters of all sizes; queries are no tracks.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from typing import Any

import numpy as np
from contrafact.v1.analysis_pb2 import Embedding
from contrafact.v1.search_pb2 import Example, TrackFilter, TrackQuery

from servers.local import running_stack
from servers.orchestrator.search.examples import Target
from servers.orchestrator.search.query import Searcher
from servers.platform.settings import Settings
from servers.storage.database import Pool, connect
from servers.storage.migrate import migrate
from tests.bench.common import keep
from tests.bench.ledger import milliseconds
from tests.orchestrator.sounds import MODEL, Sounds, random_sounds

SIZE = int(os.environ.get("SIZE", "100000"))
CALLS = int(os.environ.get("CALLS", "100"))
SHARES = {"most": 0.78, "some": 0.2, "few": 0.02}
FILTERS = {"all": 1.0, "a tenth": 0.1, "a hundredth": 0.01}  # by share of what passes: bpm is from 0 to 1
CALLERS = (1, 8)
LIMIT, INSERTS, CHUNK = 20, 300, 5000

Figures = dict[str, Any]


def measure() -> None:
    """Measure all and keep it."""
    with tempfile.TemporaryDirectory() as folder, running_stack(folder, only={"postgres"}) as stack:
        values = {"database_url": stack.environment["CONTRAFACT_DATABASE_URL"]}
        settings = Settings(**values)  # type: ignore[arg-type]
        migrate(settings.database_url)
        keep("search", asyncio.run(_measure(settings)))


async def _measure(settings: Settings) -> Figures:
    pool = await connect(settings)
    try:
        vectors = random_sounds(SIZE + CALLS + INSERTS)
        shelf = Shelf(pool, settings, vectors[:SIZE], vectors[SIZE : SIZE + CALLS])
        figures: Figures = {"tracks": SIZE, "calls": CALLS, "limit": LIMIT, "load": round(os.getloadavg()[0], 1)}
        figures |= await shelf.fill()
        figures["inserts_per_second"] = await shelf.insert(vectors[-INSERTS:])
        for owner in SHARES:
            figures[f"owner of {SHARES[owner]:.0%}"] = {name: await shelf.ask(owner, name) for name in FILTERS}
        return figures
    finally:
        await pool.close()


class Shelf:
    """Tracks of three owners, and questions."""

    def __init__(self, pool: Pool, settings: Settings, vectors: np.ndarray, queries: np.ndarray) -> None:
        self._pool, self._vectors, self._queries = pool, vectors, queries
        self._chosen = Searcher(pool, settings)
        self._index = Searcher(pool, settings.model_copy(update={"search_exact_tracks": 0}), comparisons=0)
        random = np.random.default_rng(0)
        self._owners = random.choice(list(SHARES), len(vectors), p=list(SHARES.values()))
        self._bpm = random.random(len(vectors))
        self._ids: dict[str, int] = {}

    async def fill(self) -> Figures:
        """Store all without the index, then build it, as after a restored backup."""
        sounds = Sounds(self._pool)
        definition = await self._pool.fetchval("SELECT pg_get_indexdef('sounds_embedding'::regclass)")
        await self._pool.execute("DROP INDEX sounds_embedding")
        began = time.perf_counter()
        for first in range(0, len(self._vectors), CHUNK):
            numbers = np.arange(first, min(first + CHUNK, len(self._vectors)))
            for owner in SHARES:
                own = numbers[self._owners[numbers] == owner]
                names = await sounds.fill(self._vectors[own], owner=owner, bpm=self._bpm[own].tolist())
                self._ids |= {name[7:]: int(number) for name, number in zip(names, own, strict=True)}
        stored = time.perf_counter() - began
        async with self._pool.acquire() as connection:
            await connection.execute("SET maintenance_work_mem = '4GB'; SET max_parallel_maintenance_workers = 0")
            began = time.perf_counter()
            await connection.execute(definition, timeout=7200)
            built = time.perf_counter() - began
            await connection.execute("RESET ALL")
            await connection.execute("VACUUM ANALYZE sounds", timeout=600)
        sizes = {
            f"{name}_mb": round(await self._pool.fetchval("SELECT pg_relation_size($1::text::regclass)", name) / 1e6)
            for name in ("sounds", "sounds_embedding", "sounds_newest")
        }
        return {"stored_per_second": round(SIZE / stored), "index_built_seconds": round(built, 1), **sizes}

    async def insert(self, vectors: np.ndarray) -> float:
        """Tracks a second that one connection adds, each in a transaction of its own."""
        sounds = Sounds(self._pool)
        began = time.perf_counter()
        for vector in vectors:
            await sounds.add(vector, owner="somebody else")
        return round(len(vectors) / (time.perf_counter() - began), 1)

    async def ask(self, owner: str, name: str) -> Figures:
        """All queries in all ways, of one owner and through one filter."""
        passing = np.flatnonzero((self._owners == owner) & (self._bpm <= FILTERS[name]))
        found: Figures = {"passing": len(passing)}
        for way in ("exact", "index", "chosen"):
            found[way] = {"recall": await self._recall(owner, name, way, passing)}
            for callers in CALLERS:
                found[way][f"{callers} callers"] = await self._timed(owner, name, way, callers)
        return found

    async def _recall(self, owner: str, name: str, way: str, passing: np.ndarray) -> Figures:
        shares = []
        for number, vector in enumerate(self._queries):
            nearest = passing[np.argsort(-(self._vectors[passing] @ vector), kind="stable")[:LIMIT]]
            shares.append(len(set(nearest) & set(await self._find(owner, name, way, number))) / max(1, len(nearest)))
        return {"mean": round(float(np.mean(shares)), 4), "least": min(shares)}

    async def _find(self, owner: str, name: str, way: str, number: int) -> list[int]:
        given = TrackFilter() if FILTERS[name] == 1 else TrackFilter(max_bpm=FILTERS[name])
        query = TrackQuery(examples=[Example(embedding=Embedding(model=MODEL))], filter=given)
        target = Target(self._queries[number % len(self._queries)], frozenset())
        searcher = self._index if way == "index" else self._chosen
        found = await searcher.find(owner, query, target, LIMIT, exact=way == "exact")
        return [self._ids[str(one.track_id)] for one in found]

    async def _timed(self, owner: str, name: str, way: str, callers: int) -> Figures:
        seconds: list[float] = []
        numbers = iter(range(CALLS))

        async def caller() -> None:
            for number in numbers:
                began = time.perf_counter()
                await self._find(owner, name, way, number)
                seconds.append(time.perf_counter() - began)

        await asyncio.gather(*(caller() for _ in range(callers)))
        return milliseconds(seconds)
