"""A radio: tracks without end, similar to what was asked for and not too similar to what was just played.

Each track is chosen by maximal marginal relevance (Carbonell & Goldstein 1998) among the next few hundred in order of
similarity that this round has not played. So a round plays each track once, memory does not depend on how many there
are, and a radio that is told what was played goes on as if it had not been interrupted.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from contrafact.v1 import search_pb2

from servers.orchestrator.search.examples import Target, target_of
from servers.orchestrator.search.filters import Conditions, conditions_of, ids_of
from servers.orchestrator.search.query import Found, Searcher
from servers.orchestrator.search.vectors import Vector, stored
from servers.platform.errors import precondition
from servers.storage.database import Pool

CHOICE = 256  # tracks among which the next one is chosen
PAGE = 512  # tracks fetched at once: of a million, all must be compared for each page
RECENT = 16  # tracks that the next one is to differ from; so long they rest at the beginning of a round, too
NOISE = 0.1  # by so much, times the diversity, chance changes a score
BATCH = 16  # hits looked up at once; the first comes alone


@dataclass(frozen=True)
class Candidate:
    """A track that may come next."""

    found: Found
    vector: Vector
    chance: float  # 0 to 1


@dataclass(frozen=True)
class History:
    """What was played: how many whole rounds, the tracks of the last one of them, and those since."""

    rounds: int
    last_round: Sequence[UUID]
    this_round: Sequence[UUID]

    @classmethod
    def of(cls, played: Iterable[UUID]) -> History:
        """A track that comes again begins another round."""
        rounds: list[dict[UUID, None]] = [{}]
        for track_id in played:
            if track_id in rounds[-1]:
                rounds.append({})
            rounds[-1][track_id] = None
        return cls(len(rounds) - 1, list(rounds[-2]) if len(rounds) > 1 else [], list(rounds[-1]))


def choose(
    candidates: Sequence[Candidate], recent: Collection[Vector], diversity: float, resting: Collection[UUID]
) -> int:
    """Number of the candidate with the greatest marginal relevance; one that rests only if all do."""
    vectors = np.array([candidate.vector for candidate in candidates])
    familiar = (vectors @ np.array(list(recent)).T).max(axis=1) if recent else np.zeros(len(candidates))
    similar = np.array([candidate.found.similarity for candidate in candidates])
    chance = np.array([candidate.chance for candidate in candidates])
    scores = (1 - diversity) * similar + diversity * (NOISE * chance - familiar)
    rests = np.array([candidate.found.track_id in resting for candidate in candidates])
    return int(np.argmax(scores if rests.all() else np.where(rests, -np.inf, scores)))


def chance_of(track_id: UUID, seed: int, round_: int) -> float:
    """A number from 0 to 1 that seems random."""
    text = f"{track_id} {seed} {round_}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big") / 2**48


class Radio:
    """One radio of one owner.

    Args:
        query: valid.
        diversity, seed: as in StreamRadioRequest.
        played: names of tracks, the latest last.
    """

    def __init__(
        self,
        pool: Pool,
        searcher: Searcher,
        owner: str,
        query: search_pb2.TrackQuery,
        *,
        diversity: float,
        seed: int,
        played: Sequence[str],
    ) -> None:
        self._pool, self._searcher, self._owner, self._query = pool, searcher, owner, query
        self._diversity, self._seed = diversity, seed
        self._played = list(ids_of(played))

    async def play(self) -> AsyncGenerator[search_pb2.StreamRadioResponse, None]:
        """Tracks without end.

        Raises:
            ApiError: as ``target_of``; FAILED_PRECONDITION, NOTHING_TO_PLAY: no track passes, or none does any more.
        """
        target = await target_of(self._pool, self._owner, self._query.examples, self._searcher.model)
        batch: list[tuple[Found, int]] = []
        size = 1
        async with aclosing(self._picks(target)) as picks:
            async for pick in picks:
                batch.append(pick)
                if len(batch) < size:
                    continue
                for response in await self._responses(batch, target.vector):
                    yield response
                batch, size = [], min(2 * size, BATCH)

    async def _responses(
        self, batch: Sequence[tuple[Found, int]], vector: Vector | None
    ) -> list[search_pb2.StreamRadioResponse]:
        """Without those that were deleted since."""
        found = {one.track_id: one if vector is not None else Found(one.track_id, 0.0) for one, _ in batch}
        hits = {hit.track.name: hit for hit in await self._searcher.hits(self._owner, list(found.values()), vector)}
        named = [(hits.get(f"tracks/{one.track_id}"), round_) for one, round_ in batch]
        return [search_pb2.StreamRadioResponse(hit=hit, round=round_) for hit, round_ in named if hit is not None]

    async def _picks(self, target: Target) -> AsyncGenerator[tuple[Found, int], None]:
        """Tracks, and how often all had been played before each."""
        history = History.of(self._played)
        round_, rest = history.rounds, _resting(history.last_round, len(history.last_round))
        for _ in history.this_round[: len(rest)]:
            rest.popleft()
        recent = deque(await self._vectors(self._played[-RECENT:]), RECENT)
        without, count = frozenset(history.this_round), len(history.this_round)
        latest = deque(history.this_round, RECENT)
        while True:
            async with aclosing(self._round(target, round_, without, rest, recent)) as candidates:
                async for candidate in candidates:
                    count += 1
                    latest.append(candidate.found.track_id)
                    yield candidate.found, round_
            if not count:
                raise precondition("NOTHING_TO_PLAY", "no track of known sound passes the filter")
            rest = _resting(latest, count)
            round_, without, count = round_ + 1, frozenset(), 0

    async def _round(
        self, target: Target, round_: int, without: frozenset[UUID], rest: deque[UUID], recent: deque[Vector]
    ) -> AsyncGenerator[Candidate, None]:
        """Each track once, ``without`` some; what was chosen goes to ``recent``, and ``rest`` empties meanwhile."""
        choice: list[Candidate] = []
        async with aclosing(self._by_similarity(target, round_, without)) as following:
            while True:
                while len(choice) < CHOICE and (candidate := await anext(following, None)) is not None:
                    choice.append(candidate)
                if not choice:
                    return
                chosen = choice.pop(choose(choice, recent, self._diversity, rest))
                recent.append(chosen.vector)
                if rest:  # the longest ago rests the shortest
                    rest.popleft()
                yield chosen

    async def _by_similarity(
        self, target: Target, round_: int, without: frozenset[UUID]
    ) -> AsyncGenerator[Candidate, None]:
        """All tracks that may be played, those most similar first."""
        vector = target.vector if target.vector is not None else await self._anywhere(round_)
        if vector is None:
            return
        last: tuple[float, UUID] = (math.inf, UUID(int=0))
        while True:
            conditions = self._conditions({*target.tracks, *without})
            similarity = f"-(s.embedding <#> {conditions.parameter(vector.tolist())}::real[]::halfvec(512))"
            conditions.add(f"({similarity} < {{0}} OR {similarity} = {{0}} AND s.track_id > {{1}})", *last)
            if target.vector is not None and self._query.HasField("min_similarity"):
                conditions.add(f"{similarity} >= {{}}", self._query.min_similarity)
            sql = f"""SELECT s.track_id, {similarity} AS similarity, halfvec_send(s.embedding) FROM sounds s
                      WHERE {conditions.sql} ORDER BY similarity DESC, track_id LIMIT {PAGE}"""
            rows = await self._pool.fetch(sql, *conditions.values)
            for track_id, similar, sent in rows:
                chance = chance_of(track_id, self._seed, round_)
                yield Candidate(Found(track_id, min(1.0, max(-1.0, similar))), stored(sent), chance)
                last = similar, track_id
            if len(rows) < PAGE:
                return

    async def _anywhere(self, round_: int) -> Vector | None:
        """Where a round begins that has no example: a track that seed and round choose."""
        conditions = self._conditions(())
        at = conditions.parameter(f"{self._seed} {round_}")
        sent = await self._pool.fetchval(
            f"""SELECT halfvec_send(s.embedding) FROM sounds s WHERE {conditions.sql}
                ORDER BY md5(s.track_id || {at}::text), s.track_id LIMIT 1""",
            *conditions.values,
        )
        return stored(sent) if sent is not None else None

    def _conditions(self, without: Iterable[UUID]) -> Conditions:
        conditions = conditions_of(self._query.filter, self._owner, without)
        conditions.add("s.model = {}", self._searcher.model)
        return conditions

    async def _vectors(self, track_ids: Sequence[UUID]) -> list[Vector]:
        """What tracks sound like, in their order, as far as it is known."""
        rows = await self._pool.fetch(
            """SELECT track_id, halfvec_send(embedding) FROM sounds
               WHERE owner = $1 AND model = $2 AND track_id = ANY($3::uuid[])""",
            self._owner,
            self._searcher.model,
            track_ids,
        )
        known = {track_id: stored(sent) for track_id, sent in rows}
        return [known[track_id] for track_id in track_ids if track_id in known]


def _resting(played: Iterable[UUID], count: int) -> deque[UUID]:
    """Of the ``count`` tracks of a round, the last ones, which do not begin the next."""
    return deque(played, min(RECENT, count // 2))
