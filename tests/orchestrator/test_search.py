"""Search by sound on a real PostgreSQL with pgvector: what is found, in which order, and what never is."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from contrafact.v1 import search_pb2
from contrafact.v1.analysis_pb2 import Embedding
from contrafact.v1.search_pb2 import (
    Example,
    OrderTracksRequest,
    SearchTracksRequest,
    StreamRadioRequest,
    TrackFilter,
    TrackHit,
    TrackQuery,
    TrackSegment,
)

from servers.local import running_stack
from servers.orchestrator.search.examples import target_of
from servers.orchestrator.search.index import index_recording
from servers.orchestrator.search.query import Searcher
from servers.orchestrator.search.vectors import Segments
from servers.platform.settings import Settings
from servers.storage.database import Pool, connect
from servers.storage.migrate import migrate
from tests.conftest import stack_settings
from tests.orchestrator.sounds import (
    HOP,
    MODEL,
    STRANGER,
    Search,
    Sounds,
    features_of,
    random_sounds,
    search_service,
    segments_of,
    sound,
)
from tests.orchestrator.test_voices import refused

Code = grpc.StatusCode
NOBODY = f"tracks/{uuid.UUID(int=7)}"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings by which an empty database is reached."""
    with running_stack(tmp_path_factory.mktemp("postgres"), only={"postgres"}) as stack:
        settings = stack_settings(stack)
        migrate(settings.database_url)
        yield settings


@pytest.fixture(scope="module")
async def pool(database: Settings) -> AsyncIterator[Pool]:
    """Connections to it."""
    made = await connect(database)
    yield made
    await made.close()


@pytest.fixture
async def sounds(pool: Pool) -> Sounds:
    """An empty library."""
    made = Sounds(pool)
    await made.clear()
    return made


@pytest.fixture(scope="module")
async def search(database: Settings) -> AsyncIterator[Search]:
    """The service."""
    async with search_service(database) as stub:
        yield stub


def like(name: str, weight: float = 0) -> Example:
    """A track, or the embedding of ``sound``, as an example."""
    return Example(track=name, weight=weight)


def embedded(vector: np.ndarray, weight: float = 0, model: str = MODEL) -> Example:
    return Example(embedding=Embedding(model=model, values=vector), weight=weight)


async def found(search: Search, *examples: Example, limit: int = 0, **query: Any) -> list[TrackHit]:
    """What a search finds."""
    request = SearchTracksRequest(query=TrackQuery(examples=examples, **query), limit=limit)
    return list((await search.SearchTracks(request)).hits)


async def names(search: Search, *examples: Example, **query: Any) -> list[str]:
    return [hit.track.name for hit in await found(search, *examples, **query)]


# Order and examples.


async def test_similar_ones_come_first_and_the_example_never(search: Search, sounds: Sounds) -> None:
    far, near, example, other = [
        await sounds.add(vector) for vector in (sound(b=1), sound(a=1, b=0.5), sound(a=1), sound(a=-1))
    ]
    hits = await found(search, like(example))
    assert [hit.track.name for hit in hits] == [near, far, other]
    assert [hit.similarity for hit in hits] == pytest.approx([1 / 1.25**0.5, 0, -1], abs=1e-3)
    assert hits[0].track.display_name == "a track"
    assert hits[0].track.is_analyzed


async def test_weights_and_unlike(search: Search, sounds: Sounds) -> None:
    a, b, ab, a_not_b = [
        await sounds.add(vector) for vector in (sound(a=1), sound(b=1), sound(a=1, b=1), sound(a=1, b=-1))
    ]
    assert (await names(search, embedded(sound(a=1)), embedded(sound(b=1))))[0] == ab
    assert (await names(search, embedded(sound(a=1)), embedded(sound(b=1), -1)))[0] == a_not_b
    assert (await names(search, embedded(sound(a=1), 0.1), embedded(sound(b=1))))[0] == b
    assert (await names(search, embedded(sound(a=1), 1.0), embedded(sound(b=1), -0.1)))[0] == a


async def test_a_stretch_of_a_track_as_example(search: Search, sounds: Sounds) -> None:
    stretches = [sound(a=1), sound(b=1), sound(c=1), np.zeros(512)]
    example = await sounds.add(sound(a=1), segments=stretches)
    b, c = await sounds.add(sound(b=1)), await sounds.add(sound(c=1))

    def stretch(start: float, end: float) -> Example:
        return Example(segment=TrackSegment(track=example, start_seconds=start, end_seconds=end))

    # Stretches begin every two seconds and last four.
    assert [hit.similarity for hit in await found(search, stretch(6.1, 7.9))] == pytest.approx([1, 0], abs=1e-3)
    both = await found(search, stretch(4.1, 5.9))
    assert {hit.track.name: pytest.approx(hit.similarity, abs=1e-3) for hit in both} == {b: 0.5**0.5, c: 0.5**0.5}
    assert example not in [hit.track.name for hit in both]
    outcome = await refused(found(search, stretch(50, 60)))
    assert (outcome.code, outcome.reason) == (Code.INVALID_ARGUMENT, "STRETCH_OUTSIDE")
    assert outcome.fields == ("query.examples[0].segment.start_seconds",)
    silent = await refused(found(search, stretch(8.5, 9)))
    assert (silent.code, silent.reason) == (Code.FAILED_PRECONDITION, "NO_EMBEDDING")


async def test_where_in_a_hit_it_sounds_most_like_that(search: Search, sounds: Sounds) -> None:
    hit = await sounds.add(sound(a=1), segments=[sound(a=1), np.zeros(512), sound(b=1), sound(c=1)])
    without = await sounds.add(sound(d=1))
    starts = {one.track.name: one for one in await found(search, embedded(sound(b=1, d=-1)))}
    assert starts[hit].best_start_seconds == 2 * HOP
    assert not starts[without].HasField("best_start_seconds")


async def test_without_examples_the_newest_come_first(search: Search, sounds: Sounds) -> None:
    made = [await sounds.add(sound(a=1)), await sounds.add(None), await sounds.add(sound(b=1))]
    hits = await found(search)
    assert [hit.track.name for hit in hits] == made[::-1]
    assert {hit.similarity for hit in hits} == {0}
    assert not any(hit.HasField("best_start_seconds") for hit in hits)
    assert await names(search, limit=1) == made[2:]


async def test_what_could_not_be_told_is_not_given(search: Search, sounds: Sounds) -> None:
    await sounds.add(sound(a=1))
    await sounds.add(sound(a=1), bpm=123.4, camelot="12B", lufs=-9.5)
    told, untold = await found(search)
    assert (told.bpm, told.camelot, told.integrated_lufs) == (123.4, "12B", -9.5)
    assert (untold.bpm, untold.camelot, untold.HasField("integrated_lufs")) == (0, "", False)


async def test_least_similarity(search: Search, sounds: Sounds) -> None:
    near, _ = await sounds.add(sound(a=1, b=0.1)), await sounds.add(sound(b=1))
    assert await names(search, embedded(sound(a=1)), min_similarity=0.5) == [near]
    assert await names(search, embedded(sound(a=1)), min_similarity=1) == []


async def test_embeddings_of_fewer_values_end_in_zeros(sounds: Sounds, database: Settings) -> None:
    learned = "learned-1"
    short = [await sounds.add(row, model=learned) for row in random_sounds(5, dimensions=256)]
    await sounds.add(sound(a=1))
    async with search_service(database.model_copy(update={"embedding_model": learned})) as search:
        hits = await found(search, embedded(random_sounds(5, dimensions=256)[2], model=learned))
        assert len(hits) == 5  # and not the one of the other model
        assert hits[0].track.name == short[2]
        assert hits[0].similarity == pytest.approx(1, abs=1e-3)


# Filters.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (TrackFilter(min_bpm=100), "fast mid"),
        (TrackFilter(max_bpm=100), "mid slow"),
        (TrackFilter(min_bpm=99.5, max_bpm=100.1), "mid"),
        (TrackFilter(min_bpm=160, max_bpm=180, any_octave=True), "fast slow"),
        (TrackFilter(min_bpm=42, max_bpm=43, any_octave=True), "slow"),
        (TrackFilter(any_octave=True), "fast mid slow blank"),
        (TrackFilter(keys=["8A"]), "mid"),
        (TrackFilter(keys=["8A"], compatible_keys=True), "mid slow"),
        (TrackFilter(keys=["12A"], compatible_keys=True), "fast"),
        (TrackFilter(keys=["1A", "8B"]), "fast slow"),
        (TrackFilter(min_lufs=-10), "fast"),
        (TrackFilter(max_lufs=-14), "mid slow"),
        (TrackFilter(min_lufs=-14, max_lufs=-14), "mid"),
        (TrackFilter(min_seconds=200), "slow blank"),
        (TrackFilter(max_seconds=100), "fast mid"),
        (TrackFilter(max_seconds=1e300), "fast mid slow blank"),
        (TrackFilter(tags=["dance"]), "fast mid"),
        (TrackFilter(tags=["dance", "live"]), "mid"),
        (TrackFilter(without_tags=["live", "unheard"]), "fast slow blank"),
        (TrackFilter(tags=["dance"], without_tags=["live"], min_bpm=1), "fast"),
        (TrackFilter(tags=["\0"]), ""),
        (TrackFilter(without_tags=["\0"]), "fast mid slow blank"),
        (TrackFilter(exclude=[NOBODY, "tracks/" + "-" * 36]), "fast mid slow blank"),
    ],
)
async def test_filters(search: Search, sounds: Sounds, given: TrackFilter, expected: str) -> None:
    made = {
        await sounds.add(sound(a=1), bpm=170, camelot="1A", lufs=-8, seconds=90, tags=["dance"]): "fast",
        await sounds.add(sound(b=1), bpm=100, camelot="8A", lufs=-14, seconds=100, tags=["live", "dance"]): "mid",
        await sounds.add(sound(c=1), bpm=85, camelot="8B", lufs=-20, seconds=200, tags=["Dance"]): "slow",
        await sounds.add(sound(d=1), seconds=300): "blank",
    }
    for examples in ((), (embedded(sound(a=1)),)):
        assert {made[name] for name in await names(search, *examples, filter=given)} == set(expected.split())


async def test_excluded_tracks_are_not_found(search: Search, sounds: Sounds) -> None:
    a, b = await sounds.add(sound(a=1)), await sounds.add(sound(a=1, b=0.1))
    assert await names(search, filter=TrackFilter(exclude=[a])) == [b]
    assert await names(search, embedded(sound(a=1)), filter=TrackFilter(exclude=[a])) == [b]


async def test_tags_are_those_that_the_track_has_now(search: Search, sounds: Sounds) -> None:
    name = await sounds.add(sound(a=1))
    await sounds.pool.execute("UPDATE tracks SET tags = '{new}'")
    assert await names(search, filter=TrackFilter(tags=["new"])) == [name]


# Others, and what is gone.


async def test_nobody_finds_what_is_not_theirs(search: Search, sounds: Sounds) -> None:
    others = [await sounds.add(sound(a=1), owner=STRANGER) for _ in range(3)]
    own = await sounds.add(sound(a=1))
    assert await names(search) == [own]
    assert await names(search, embedded(sound(a=1))) == [own]
    for call in (
        found(search, like(others[0])),
        found(search, Example(segment=TrackSegment(track=others[0], end_seconds=1))),
        search.OrderTracks(OrderTracksRequest(tracks=[own, others[0]])),
    ):
        assert (await refused(call)).code is Code.NOT_FOUND
    assert [response.hit.track.name for response in await heard(search, 3)] == [own] * 3


async def test_a_recording_of_two_owners(search: Search, sounds: Sounds) -> None:
    sha256 = await sounds.recording()
    first = await sounds.track(sha256)
    assert await names(search) == []
    await sounds.analyze(sha256, features_of(sound(a=1)))
    assert await names(search) == [first]
    await sounds.track(sha256, owner=STRANGER)  # analysed already
    assert await sounds.pool.fetchval("SELECT count(*) FROM sounds") == 2
    await sounds.analyze(sha256, features_of(sound(b=1), bpm=99))
    assert [hit.bpm for hit in await found(search, embedded(sound(b=1)), min_similarity=0.9)] == [99]
    assert await sounds.pool.fetchval("SELECT count(*) FROM sounds WHERE bpm = 99") == 2


async def test_an_analysis_stored_while_the_track_is_made(search: Search, sounds: Sounds) -> None:
    """Neither transaction sees what the other has not committed; the track must be found all the same."""
    sha256 = await sounds.recording()
    async with sounds.pool.acquire() as connection:
        storing = connection.transaction()
        await storing.start()
        await connection.execute(
            "INSERT INTO analyses VALUES ($1, '1', $2, '', '', '')",
            sha256,
            features_of(sound(a=1)).SerializeToString(),
        )
        await index_recording(connection, sha256)
        registering = asyncio.create_task(sounds.track(sha256))
        assert not (await asyncio.wait([registering], timeout=0.3))[0]
        await storing.commit()
    name = await registering
    assert await names(search) == [name]


async def test_deleted_tracks_are_gone(search: Search, sounds: Sounds) -> None:
    name = await sounds.add(sound(a=1))
    await sounds.delete(name)
    assert await names(search, embedded(sound(a=1))) == []
    assert await sounds.pool.fetchval("SELECT count(*) FROM sounds") == 0


@pytest.mark.parametrize("kind", ["track", "segment"])
async def test_examples_that_cannot_be(search: Search, sounds: Sounds, kind: str) -> None:
    def example(name: str) -> Example:
        if kind == "track":
            return Example(track=name)
        return Example(segment=TrackSegment(track=name, start_seconds=0, end_seconds=1))

    field = "query.examples[1]." + ("track" if kind == "track" else "segment.track")
    bare = await sounds.track(await sounds.recording())
    silent = await sounds.add(None)
    other = await sounds.add(sound(a=1), model="other-1", segments=[sound(a=1)])
    for name, code, reason in (
        (NOBODY, Code.NOT_FOUND, "TRACK_NOT_FOUND"),
        ("tracks/" + "a" * 36, Code.NOT_FOUND, "TRACK_NOT_FOUND"),
        (bare, Code.FAILED_PRECONDITION, "NOT_ANALYZED"),
    ):
        outcome = await refused(found(search, embedded(sound(a=1)), example(name)))
        assert (outcome.code, outcome.reason, outcome.fields) == (code, reason, (field,))
    outcome = await refused(found(search, example(silent)))
    assert (outcome.code, outcome.reason) == (Code.FAILED_PRECONDITION, "NO_EMBEDDING")
    outcome = await refused(found(search, example(other)))
    assert (outcome.code, outcome.reason) == (Code.FAILED_PRECONDITION, "NOT_ANALYZED")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (TrackQuery(examples=[embedded(sound(a=1), model="other-1")]), "EMBEDDING_MODEL_MISMATCH"),
        (TrackQuery(examples=[embedded(np.ones(511))]), "EMBEDDING_SIZE_MISMATCH"),
        (TrackQuery(examples=[embedded(np.ones(4096))]), "EMBEDDING_SIZE_MISMATCH"),
        (TrackQuery(examples=[embedded(np.zeros(512))]), "EMBEDDING_ZERO"),
        (TrackQuery(examples=[embedded(np.full(512, np.nan))]), "INVALID_FIELD"),
        (TrackQuery(examples=[embedded(np.append(np.ones(511), np.inf))]), "INVALID_FIELD"),
        (TrackQuery(examples=[Example()]), "INVALID_FIELD"),
        (TrackQuery(examples=[embedded(sound(a=1), float("nan"))]), "INVALID_FIELD"),
        (TrackQuery(examples=[embedded(sound(a=1)), embedded(sound(a=1), -1)]), "EXAMPLES_CANCEL_OUT"),
        (TrackQuery(min_similarity=float("nan")), "INVALID_FIELD"),
        (TrackQuery(filter=TrackFilter(min_bpm=float("nan"))), "INVALID_FIELD"),
        (TrackQuery(filter=TrackFilter(min_bpm=2, max_bpm=1)), "INVALID_RANGE"),
        (TrackQuery(filter=TrackFilter(min_seconds=2, max_seconds=1)), "INVALID_RANGE"),
        (TrackQuery(filter=TrackFilter(keys=["13A"])), "INVALID_FIELD"),
        (
            TrackQuery(examples=[Example(segment=TrackSegment(track=NOBODY, start_seconds=2, end_seconds=1))]),
            "INVALID_RANGE",
        ),
    ],
)
async def test_queries_that_cannot_be(search: Search, sounds: Sounds, query: TrackQuery, reason: str) -> None:
    for call in (
        search.SearchTracks(SearchTracksRequest(query=query)),
        anext(aiter(search.StreamRadio(StreamRadioRequest(query=query)))),
    ):
        outcome = await refused(call)
        assert (outcome.code, outcome.reason) == (Code.INVALID_ARGUMENT, reason)


async def test_values_that_are_great_but_right(search: Search, sounds: Sounds) -> None:
    name = await sounds.add(sound(a=1))
    assert await names(search, embedded(sound(a=1) * 3e38)) == [name]


# The index.


@pytest.fixture
def by_index(database: Settings, pool: Pool) -> Searcher:
    """Asks the index however few tracks there are."""
    return Searcher(pool, database.model_copy(update={"search_exact_tracks": 0}), comparisons=0)


async def test_the_index_finds_what_comparing_each_does(sounds: Sounds, by_index: Searcher) -> None:
    """With all tracks, and with a third or half of them that passes a filter, among as many of others."""
    vectors = random_sounds(2000)
    bpm = [60.0 + number % 99 for number in range(1000)]
    await sounds.fill(vectors[::2], bpm=bpm)
    await sounds.fill(vectors[1::2], owner=STRANGER, bpm=bpm)
    await sounds.pool.execute("UPDATE tracks SET tags = '{even}' WHERE right(id::text, 1) < '8'")
    before = await scans_of_the_index(sounds.pool)
    for given in (TrackFilter(), TrackFilter(max_bpm=92.5), TrackFilter(tags=["even"])):
        shares = []
        for vector in vectors[:20]:
            query = TrackQuery(examples=[embedded(vector)], filter=given)
            target = await target_of(sounds.pool, "local", query.examples, MODEL)
            exact = await by_index.find("local", query, target, 20, exact=True)
            quick = await by_index.find("local", query, target, 20)
            similarities = [one.similarity for one in quick]
            assert similarities == sorted(similarities, reverse=True)
            shares.append(len({one.track_id for one in quick} & {one.track_id for one in exact}) / 20)
        assert np.mean(shares) >= 0.95
    async with asyncio.timeout(100):  # backends report when they are idle
        while await scans_of_the_index(sounds.pool) == before:
            await asyncio.sleep(0.2)


async def test_where_the_index_finds_too_few_each_is_compared(sounds: Sounds, by_index: Searcher) -> None:
    vectors = random_sounds(600)
    own = await sounds.fill(vectors[:100])
    await sounds.fill(vectors[100:], owner=STRANGER)
    hits = await by_index.search("local", TrackQuery(examples=[embedded(vectors[0])]), 500)
    assert {hit.track.name for hit in hits} == set(own)


async def scans_of_the_index(pool: Pool) -> int:
    sql = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'sounds_embedding'"
    found: int = await pool.fetchval(sql)
    return found


# Radio.


async def heard(search: Search, count: int, **request: Any) -> list[search_pb2.StreamRadioResponse]:
    """The first tracks of a radio."""
    call = search.StreamRadio(StreamRadioRequest(**request))
    responses = []
    async for response in call:
        responses.append(response)
        if len(responses) == count:
            break
    call.cancel()
    return responses


def played(responses: list[search_pb2.StreamRadioResponse]) -> list[str]:
    return [response.hit.track.name for response in responses]


async def test_a_round_plays_all_once_and_the_next_begins_with_others(search: Search, sounds: Sounds) -> None:
    library = set(await sounds.fill(random_sounds(40)))
    await sounds.add(None)
    for request in ({"diversity": 0.3}, {"query": TrackQuery(examples=[embedded(random_sounds(40)[3])])}):
        responses = await heard(search, 100, **request)
        rounds = [played(responses[start : start + 40]) for start in (0, 40, 80)]
        assert set(rounds[0]) == set(rounds[1]) == library
        assert [response.round for response in responses] == [0] * 40 + [1] * 40 + [2] * 20
        for before, after in itertools.pairwise(rounds):
            # Each of the last sixteen rests; the longest ago the shortest.
            for place, name in enumerate(after[:16]):
                assert name not in before[-16:][place:]


async def test_more_tracks_than_are_fetched_at_once(search: Search, sounds: Sounds) -> None:
    library = await sounds.fill(random_sounds(600))
    assert set(played(await heard(search, 600, diversity=0.5))) == set(library)


async def test_the_most_similar_first_without_diversity(search: Search, sounds: Sounds) -> None:
    await sounds.fill(random_sounds(60))
    example = embedded(random_sounds(60)[5])
    responses = await heard(search, 60, query=TrackQuery(examples=[example]))
    assert played(responses) == await names(search, example, limit=60)
    assert responses[0].hit.similarity > 0.99
    near = await heard(search, 3, query=TrackQuery(examples=[example], min_similarity=0.99))
    assert played(near) == played(responses[:1]) * 3


async def test_diversity_makes_neighbours_differ(search: Search, sounds: Sounds) -> None:
    vectors = random_sounds(200)
    library = dict(zip(await sounds.fill(vectors), vectors, strict=True))
    query = TrackQuery(examples=[embedded(vectors[0])])

    async def likeness(diversity: float) -> float:
        tracks = [library[name] for name in played(await heard(search, 30, query=query, diversity=diversity))]
        return float(np.mean([a @ b for a, b in itertools.pairwise(tracks)]))

    assert await likeness(0) > await likeness(0.5) > await likeness(1)


async def test_a_seed_gives_the_same_radio_and_another_another(search: Search, sounds: Sounds) -> None:
    await sounds.fill(random_sounds(60))
    query = TrackQuery(examples=[embedded(random_sounds(60)[5])])
    for request in ({"query": query, "diversity": 0.5}, {}):
        first, again, other = [
            played(await heard(search, 60, seed=seed, **request)) for seed in (2**64 - 1,) * 2 + (1,)
        ]
        assert first == again
        assert first != other


@pytest.mark.parametrize("before", [5, 50, 95])
async def test_a_radio_goes_on_where_it_was(search: Search, sounds: Sounds, before: int) -> None:
    await sounds.fill(random_sounds(40))
    for query in (TrackQuery(), TrackQuery(examples=[embedded(random_sounds(40)[5])])):
        whole = await heard(search, 130, query=query, diversity=0.4, seed=5)
        rest = await heard(search, 130 - before, query=query, diversity=0.4, seed=5, played=played(whole[:before]))
        assert rest == whole[before:]


async def test_the_filter_holds_on_the_radio(search: Search, sounds: Sounds) -> None:
    a, _ = await sounds.add(sound(a=1), bpm=100), await sounds.add(sound(b=1), bpm=200)
    assert played(await heard(search, 5, query=TrackQuery(filter=TrackFilter(max_bpm=150)))) == [a] * 5


async def test_nothing_to_play(search: Search, sounds: Sounds) -> None:
    await sounds.add(None)
    outcome = await refused(heard(search, 1))
    assert (outcome.code, outcome.reason) == (Code.FAILED_PRECONDITION, "NOTHING_TO_PLAY")


async def test_tracks_deleted_and_added_meanwhile(search: Search, sounds: Sounds) -> None:
    library = await sounds.fill(random_sounds(4))
    call = search.StreamRadio(StreamRadioRequest())
    responses = aiter(call)
    await anext(responses)
    for name in library[1:]:
        await sounds.delete(name)
    new = await sounds.add(sound(a=1))
    # What gRPC had taken of the stream before may still come.
    while {(await anext(responses)).hit.track.name, (await anext(responses)).hit.track.name} != {library[0], new}:
        pass
    call.cancel()


# Order.


async def test_an_order(search: Search, sounds: Sounds) -> None:
    a = await sounds.add(sound(a=1), bpm=120, camelot="8A")
    b = await sounds.add(sound(a=1), bpm=61, camelot="9A")
    c = await sounds.add(sound(a=1), bpm=90, camelot="2B")
    d = await sounds.add(None)
    response = await search.OrderTracks(OrderTracksRequest(tracks=[a, c, b, d], first=b))
    steps = {step.track: step for step in response.tracks}
    assert [step.track for step in response.tracks][:2] == [b, a]
    assert set(steps) == {a, b, c, d}
    assert not steps[b].HasField("tempo_change_percent")
    assert steps[a].tempo_change_percent == pytest.approx(100 * (122 / 120 - 1))
    assert steps[a].key_steps == 1
    assert not steps[d].HasField("key_steps")


async def test_orders_that_cannot_be(search: Search, sounds: Sounds) -> None:
    a, bare = await sounds.add(sound(a=1)), await sounds.track(await sounds.recording())
    dashes = a.replace("-", "")
    same = f"{dashes[:7]}----{dashes[7:]}"[: len(a)]
    for request, code, reason in (
        (OrderTracksRequest(tracks=[a, bare]), Code.FAILED_PRECONDITION, "NOT_ANALYZED"),
        (OrderTracksRequest(tracks=[a, NOBODY]), Code.NOT_FOUND, "TRACK_NOT_FOUND"),
        (OrderTracksRequest(tracks=[a], first=NOBODY), Code.INVALID_ARGUMENT, "NOT_IN_TRACKS"),
        (OrderTracksRequest(tracks=[a, a]), Code.INVALID_ARGUMENT, "INVALID_FIELD"),
        (OrderTracksRequest(tracks=[a, same]), Code.INVALID_ARGUMENT, "REPEATED_TRACK"),
    ):
        outcome = await refused(search.OrderTracks(request))
        assert (outcome.code, outcome.reason) == (code, reason)


def test_segments_survive_being_stored() -> None:
    segments = Segments.parse(segments_of([sound(a=1), sound(b=1)]))
    assert len(segments.between(0, 1)) == 1
    assert len(segments.between(0, 2.1)) == 2
    assert not len(segments.between(6, 7))
    assert Segments.parse(b"").best_start(sound(a=1).astype(np.float32)) is None
