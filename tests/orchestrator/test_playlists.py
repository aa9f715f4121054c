"""Smart playlists: made, changed, listed, run, and nobody else's."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from contrafact.v1.analysis_pb2 import Embedding
from contrafact.v1.search_pb2 import (
    CreatePlaylistRequest,
    DeletePlaylistRequest,
    Example,
    GetPlaylistRequest,
    ListPlaylistsRequest,
    ListPlaylistTracksRequest,
    Playlist,
    TrackFilter,
    TrackQuery,
    UpdatePlaylistRequest,
)
from google.protobuf.field_mask_pb2 import FieldMask

from servers.local import running_stack
from servers.platform.settings import Settings
from servers.storage.database import Pool, connect
from servers.storage.migrate import migrate
from tests.conftest import stack_settings
from tests.orchestrator.sounds import MODEL, Search, Sounds, random_sounds, search_service, sound
from tests.orchestrator.test_voices import refused

Code = grpc.StatusCode
NOBODY = f"playlists/{uuid.UUID(int=7)}"


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


def query_like(vector: np.ndarray, **given: Any) -> TrackQuery:
    return TrackQuery(examples=[Example(embedding=Embedding(model=MODEL, values=vector))], **given)


async def create(search: Search, request_id: str = "", **fields: Any) -> Playlist:
    playlist = Playlist(**{"display_name": "a list", **fields})
    request = CreatePlaylistRequest(request_id=request_id or str(uuid.uuid4()), playlist=playlist)
    return (await search.CreatePlaylist(request)).playlist


async def change(search: Search, playlist: Playlist, *paths: str) -> Playlist:
    request = UpdatePlaylistRequest(playlist=playlist, update_mask=FieldMask(paths=paths))
    return (await search.UpdatePlaylist(request)).playlist


async def hits(search: Search, playlist: Playlist) -> list[str]:
    response = await search.ListPlaylistTracks(ListPlaylistTracksRequest(parent=playlist.name))
    return [hit.track.name for hit in response.hits]


async def test_a_playlist_comes_back_as_it_was_made(search: Search, sounds: Sounds) -> None:
    query = query_like(sound(a=1, b=0.3), filter=TrackFilter(min_bpm=99.9, tags=["ä"]), min_similarity=0.25)
    made = await create(search, display_name=" Ärger\u202e \n", query=query, limit=7, ordered=True)
    assert (made.display_name, made.query, made.limit, made.ordered) == ("Ärger", query, 7, True)
    assert (await search.GetPlaylist(GetPlaylistRequest(name=made.name))).playlist == made
    assert (await create(search)).limit == 100


async def test_the_same_request_makes_one(search: Search, sounds: Sounds) -> None:
    request_id = str(uuid.uuid4())
    made = await create(search, request_id)
    assert await create(search, request_id) == made
    made.display_name = "changed"
    await change(search, made, "display_name")
    assert await create(search, request_id) == made


async def test_lists_in_pages(search: Search, sounds: Sounds) -> None:
    made = [await create(search, display_name=str(number)) for number in range(5)]
    listed: list[Playlist] = []
    token = ""
    while True:
        page = await search.ListPlaylists(ListPlaylistsRequest(page_size=2, page_token=token))
        listed += page.playlists
        token = page.next_page_token
        if not token:
            break
    assert listed == made[::-1]
    outcome = await refused(search.ListPlaylists(ListPlaylistsRequest(page_token="nonsense")))
    assert outcome.reason == "INVALID_PAGE_TOKEN"


async def test_a_page_of_large_playlists_is_not_too_large(search: Search, sounds: Sounds) -> None:
    like = Example(embedding=Embedding(model=MODEL, values=sound(a=1)))
    for _ in range(80):
        await create(search, query=TrackQuery(examples=[like] * 32))
    first = await search.ListPlaylists(ListPlaylistsRequest(page_size=1000))
    rest = await search.ListPlaylists(ListPlaylistsRequest(page_size=1000, page_token=first.next_page_token))
    assert first.ByteSize() < 4 * 1024 * 1024
    assert len({each.name for each in (*first.playlists, *rest.playlists)}) == 80
    assert not rest.next_page_token


async def test_only_what_the_mask_names_changes(search: Search, sounds: Sounds) -> None:
    made = await create(search, limit=5)
    asked = Playlist(name=made.name, display_name="new", limit=9, ordered=True, query=query_like(sound(a=1)))
    made.display_name, made.limit = "new", 9
    assert await change(search, asked, "display_name", "limit") == made
    made.ordered = True
    made.query.CopyFrom(asked.query)
    assert await change(search, asked, "ordered", "query") == made


async def test_its_tracks_are_those_that_answer_now(search: Search, sounds: Sounds) -> None:
    made = await create(search, query=query_like(sound(a=1), filter=TrackFilter(tags=["in"])), limit=2)
    assert await hits(search, made) == []
    far, near, best = [
        await sounds.add(vector, tags=["in"]) for vector in (sound(b=1), sound(a=1, b=0.5), sound(a=1, b=0.1))
    ]
    await sounds.add(sound(a=1))
    assert await hits(search, made) == [best, near]
    await sounds.delete(best)
    assert await hits(search, made) == [near, far]


async def test_its_tracks_may_be_ordered(search: Search, sounds: Sounds) -> None:
    bpm = [100 + 7 * number % 40 for number in range(40)]
    names = {await sounds.add(vector, bpm=bpm[n], camelot="8A"): bpm[n] for n, vector in enumerate(random_sounds(40))}
    made = await create(search, query=query_like(sound(a=1)), ordered=True)
    ordered = [names[name] for name in await hits(search, made)]
    assert ordered in (sorted(bpm), sorted(bpm, reverse=True))


async def test_deleted_ones_are_gone_and_their_tracks_stay(search: Search, sounds: Sounds) -> None:
    name = await sounds.add(sound(a=1))
    made = await create(search)
    assert await hits(search, made) == [name]
    await search.DeletePlaylist(DeletePlaylistRequest(name=made.name))
    for call in (
        search.GetPlaylist(GetPlaylistRequest(name=made.name)),
        search.DeletePlaylist(DeletePlaylistRequest(name=made.name)),
        search.ListPlaylistTracks(ListPlaylistTracksRequest(parent=made.name)),
        change(search, made, "limit"),
    ):
        outcome = await refused(call)
        assert (outcome.code, outcome.reason) == (Code.NOT_FOUND, "PLAYLIST_NOT_FOUND")
    assert await sounds.pool.fetchval("SELECT count(*) FROM tracks") == 1


async def test_those_of_others_do_not_exist(search: Search, sounds: Sounds) -> None:
    made = await create(search)
    await sounds.pool.execute("UPDATE playlists SET owner = 'stranger'")
    assert not (await search.ListPlaylists(ListPlaylistsRequest())).playlists
    for call in (
        search.GetPlaylist(GetPlaylistRequest(name=made.name)),
        search.DeletePlaylist(DeletePlaylistRequest(name=made.name)),
        search.ListPlaylistTracks(ListPlaylistTracksRequest(parent=made.name)),
        change(search, made, "display_name"),
    ):
        assert (await refused(call)).code is Code.NOT_FOUND


@pytest.mark.parametrize(
    ("playlist", "field", "reason"),
    [
        (Playlist(display_name="\n\u200b "), "playlist.display_name", "INVALID_FIELD"),
        (Playlist(display_name="a", limit=501), "playlist.limit", "INVALID_FIELD"),
        (
            Playlist(display_name="a", query=TrackQuery(filter=TrackFilter(min_bpm=2, max_bpm=1))),
            "playlist.query.filter.min_bpm",
            "INVALID_RANGE",
        ),
        (
            Playlist(display_name="a", query=TrackQuery(filter=TrackFilter(tags=["\0"]))),
            "playlist.query.filter.tags",
            "INVALID_FIELD",
        ),
        (
            Playlist(display_name="a", query=query_like(np.ones(3))),
            "playlist.query.examples[0].embedding.values",
            "EMBEDDING_SIZE_MISMATCH",
        ),
    ],
)
async def test_playlists_that_cannot_be(
    search: Search, sounds: Sounds, playlist: Playlist, field: str, reason: str
) -> None:
    made = await create(search)
    playlist.name = made.name
    request = CreatePlaylistRequest(request_id=str(uuid.uuid4()), playlist=playlist)
    for call in (search.CreatePlaylist(request), change(search, playlist, "display_name", "query", "limit")):
        outcome = await refused(call)
        assert (outcome.code, outcome.reason, outcome.fields) == (Code.INVALID_ARGUMENT, reason, (field,))
    assert (await search.GetPlaylist(GetPlaylistRequest(name=made.name))).playlist == made


@pytest.mark.parametrize("paths", [[], ["name"], ["*"], ["create_time"], ["query.examples"]])
async def test_masks_that_cannot_be(search: Search, sounds: Sounds, paths: list[str]) -> None:
    outcome = await refused(change(search, await create(search), *paths))
    assert outcome.code is Code.INVALID_ARGUMENT


async def test_names_that_cannot_be(search: Search, sounds: Sounds) -> None:
    made = await create(search)
    assert (await refused(change(search, Playlist(name=NOBODY), "limit"))).code is Code.NOT_FOUND
    for name in ("", "playlists/", made.name.replace("playlists", "tracks")):
        outcome = await refused(change(search, Playlist(name=name), "limit"))
        assert outcome.code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND)
