"""Queries: tracks by sound.

Where few tracks pass the filter, each of them is compared; that misses nothing. Where many do, the HNSW index (Malkov &
Yashunin 2018) gives the nearest of all owners' in order, until enough of them pass the filter (pgvector's iterative
scan); it may miss some. Vectors are of 16-bit floats in both: similarities are off by less than 0.0001.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from contrafact.v1 import search_pb2

from servers.orchestrator.api.resources import TRACK_COLUMNS, track
from servers.orchestrator.search import camelot
from servers.orchestrator.search.examples import Target, target_of
from servers.orchestrator.search.filters import Conditions, conditions_of
from servers.orchestrator.search.vectors import Segments, Vector
from servers.platform.settings import Settings
from servers.storage.database import Pool, Row

CANDIDATES = 200  # that the index keeps while it looks: the more, the less is missed
MOST_CANDIDATES = 1000  # that pgvector allows
# See ``python -m tests.bench search``.
COMPARISONS = 20
_TOGETHER = 10  # tracks whose segments are read at once: those of ten hours are megabytes
_INDEX_SETTINGS = {
    "hnsw.iterative_scan": "relaxed_order",
    "enable_sort": "off",  # of all that pass; what the index found is sorted all the same
    "enable_seqscan": "off",
}
_HITS = f"""
SELECT {TRACK_COLUMNS}, s.bpm, s.key, s.loudness
FROM sounds s JOIN tracks t ON t.id = s.track_id JOIN recordings r USING (sha256)
WHERE t.owner = $1 AND t.id = ANY($2::uuid[])
"""
_SEGMENTS = "SELECT t.id, a.segments FROM tracks t JOIN analyses a USING (sha256) WHERE t.id = ANY($1::uuid[])"


@dataclass(frozen=True)
class Found:
    """A track that was found, and how similar it is: -1 to 1."""

    track_id: UUID
    similarity: float


class Searcher:
    """Answers queries in the tracks of one owner at a time.

    Args:
        settings: which embeddings are compared, and how many tracks one by one whatever that costs.
        comparisons: how many of those cost as much as one by the index; 0: it is asked whenever more tracks pass.
    """

    def __init__(self, pool: Pool, settings: Settings, *, comparisons: int = COMPARISONS) -> None:
        self._pool = pool
        self._comparisons = comparisons
        self.model = settings.embedding_model
        self._exact_tracks = settings.search_exact_tracks

    async def search(
        self, owner: str, query: search_pb2.TrackQuery, limit: int, *, exact: bool = False
    ) -> list[search_pb2.TrackHit]:
        """The tracks of ``owner`` that answer a valid query, the most similar, or without examples the newest, first.

        Raises:
            ApiError: as ``target_of``.
        """
        target = await target_of(self._pool, owner, query.examples, self.model)
        found = await self.find(owner, query, target, limit, exact=exact)
        return await self.hits(owner, found, target.vector)

    async def find(
        self, owner: str, query: search_pb2.TrackQuery, target: Target, limit: int, *, exact: bool = False
    ) -> list[Found]:
        """The same, without what there is to say of each."""
        conditions = conditions_of(query.filter, owner, target.tracks)
        if target.vector is None:
            sql = f"""SELECT s.track_id, 0.0::float8 FROM sounds s WHERE {conditions.sql}
                      ORDER BY s.added_at DESC, s.track_id DESC LIMIT {limit}"""
            return [Found(*row) for row in await self._pool.fetch(sql, *conditions.values)]
        conditions.add("s.model = {}", self.model)
        found = None if exact else await self._by_index(conditions, target.vector, limit)
        if found is None:
            filtered = query.filter != search_pb2.TrackFilter()
            found = await self._one_by_one(conditions, target.vector, limit, filtered)
        least = query.min_similarity if query.HasField("min_similarity") else -1.0
        return [one for one in found if one.similarity >= least]

    async def _by_index(self, conditions: Conditions, vector: Vector, limit: int) -> list[Found] | None:
        """None: the index is not worth its while, or gave too few."""
        # Of n tracks that pass, the index must give about limit * total / n of all to find enough of them.
        ((many,),) = await self._fetch(
            f"""WITH worth AS (
                    SELECT greatest({self._exact_tracks}, sqrt({self._comparisons * limit} * greatest(reltuples, 0)))
                           ::bigint AS tracks FROM pg_class WHERE oid = 'sounds'::regclass),
                passing AS (SELECT 1 FROM sounds s WHERE {conditions.sql} LIMIT (SELECT tracks + 1 FROM worth))
                SELECT (SELECT count(*) FROM passing) > tracks FROM worth""",
            conditions.values,
        )
        if not many:
            return None
        distance = f"s.embedding <#> ${len(conditions.values) + 1}::real[]::halfvec(512)"
        sql = f"""WITH near AS MATERIALIZED (
                      SELECT s.track_id, {distance} AS distance FROM sounds s
                      WHERE {conditions.sql} ORDER BY {distance} LIMIT {limit})
                  SELECT track_id, -distance FROM near ORDER BY distance, track_id"""
        candidates = min(max(CANDIDATES, 2 * limit), MOST_CANDIDATES)
        settings = {**_INDEX_SETTINGS, "hnsw.ef_search": str(candidates)}
        rows = await self._fetch(sql, [*conditions.values, vector.tolist()], settings)
        return _found(rows) if len(rows) == limit else None

    async def _one_by_one(self, conditions: Conditions, vector: Vector, limit: int, filtered: bool) -> list[Found]:
        similarity = f"-(s.embedding <#> ${len(conditions.values) + 1}::real[]::halfvec(512)) AS similarity"
        ordered = f"ORDER BY similarity DESC, track_id LIMIT {limit}"  # an order that the index does not know
        sql = f"SELECT s.track_id, {similarity} FROM sounds s WHERE {conditions.sql} {ordered}"
        if filtered:  # by the index on owners, which knows what is filtered by: the rows with vectors are large
            sql = f"""WITH passing AS MATERIALIZED (SELECT s.track_id FROM sounds s WHERE {conditions.sql})
                      SELECT s.track_id, {similarity} FROM passing JOIN sounds s USING (track_id) {ordered}"""
        return _found(await self._fetch(sql, [*conditions.values, vector.tolist()]))

    async def _fetch(self, sql: str, values: Sequence[Any], settings: Mapping[str, str] | None = None) -> list[Row]:
        """Rows, by a plan for these very values: owners have a few tracks or a million."""
        chosen = {"plan_cache_mode": "force_custom_plan", **(settings or {})}
        calls = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in chosen.items())
        async with self._pool.acquire() as connection, connection.transaction(readonly=True):
            await connection.execute(f"SELECT {calls}")
            return await connection.fetch(sql, *values)

    async def hits(self, owner: str, found: Sequence[Found], vector: Vector | None) -> list[search_pb2.TrackHit]:
        """What there is to say of tracks that were found, in their order; without those deleted since.

        Args:
            vector: what they were compared with, if they were; then it is found where in them it sounds most like that.
        """
        ids = [one.track_id for one in found]
        rows = {row["id"]: row for row in await self._pool.fetch(_HITS, owner, ids)}
        starts = await self._best_starts(list(rows), vector) if vector is not None else {}
        return [
            _hit(rows[one.track_id], one.similarity, starts.get(one.track_id)) for one in found if one.track_id in rows
        ]

    async def _best_starts(self, ids: Sequence[UUID], vector: Vector) -> dict[UUID, float]:
        starts = {}
        for first in range(0, len(ids), _TOGETHER):
            for track_id, data in await self._pool.fetch(_SEGMENTS, ids[first : first + _TOGETHER]):
                segments = Segments.parse(data)
                best = segments.best_start(vector) if segments.model == self.model else None
                if best is not None:
                    starts[track_id] = best
        return starts


def _found(rows: Sequence[Row]) -> list[Found]:
    return [Found(track_id, min(1.0, max(-1.0, similarity))) for track_id, similarity in rows]


def _hit(row: Row, similarity: float, best_start: float | None) -> search_pb2.TrackHit:
    return search_pb2.TrackHit(
        track=track(row),
        similarity=similarity,
        best_start_seconds=best_start,
        bpm=row["bpm"] or 0,
        camelot=camelot.code(row["key"]) if row["key"] else "",
        integrated_lufs=row["loudness"],
    )
