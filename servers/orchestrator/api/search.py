"""SearchService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from uuid import UUID

import grpc
from contrafact.v1 import search_pb2, search_pb2_grpc

from servers.orchestrator.api.resources import check_mask, page_limit, read_time_token, resource_id, write_token
from servers.orchestrator.engines.embedder import Listener
from servers.orchestrator.search import camelot, playlists
from servers.orchestrator.search.clips import Clips
from servers.orchestrator.search.examples import analyzed_tracks, check_query
from servers.orchestrator.search.ordering import Tune, key_steps, order, tempo_change
from servers.orchestrator.search.query import Searcher
from servers.orchestrator.search.radio import Radio
from servers.platform.errors import ApiError, invalid, not_found
from servers.platform.identity import principal
from servers.platform.interceptors import Context
from servers.platform.settings import Settings
from servers.storage.database import Pool, Row

DEFAULT_HITS = 20
MAX_RADIOS = 256  # at once in one API server, each of up to two megabytes
_PAGE_BYTES = 3 * 1024 * 1024  # from so many on, a page is full: by default clients of gRPC take 4 MiB


class SearchService(search_pb2_grpc.SearchServiceServicer):
    """Searches, radios, orders and smart playlists."""

    def __init__(self, pool: Pool, settings: Settings, listener: Listener) -> None:
        self._pool = pool
        self._searcher = Searcher(pool, settings)
        self._clips = Clips(settings, listener)
        self._playlists = playlists.PlaylistStore(pool)
        self._radios = 0
        self._ordering = asyncio.Semaphore(1)  # it takes up to a second of a core

    async def SearchTracks(
        self, request: search_pb2.SearchTracksRequest, context: Context
    ) -> search_pb2.SearchTracksResponse:
        check_query(request.query, self._searcher.model, "query")
        limit = request.limit or DEFAULT_HITS
        hits = await self._searcher.search(principal().id, request.query, limit, exact=request.exact)
        return search_pb2.SearchTracksResponse(hits=hits)

    async def EmbedClip(
        self, request_iterator: AsyncIterator[search_pb2.EmbedClipRequest], context: Context
    ) -> search_pb2.EmbedClipResponse:
        return search_pb2.EmbedClipResponse(embedding=await self._clips.embed(request_iterator))

    async def StreamRadio(
        self, request: search_pb2.StreamRadioRequest, context: Context
    ) -> AsyncIterator[search_pb2.StreamRadioResponse]:
        check_query(request.query, self._searcher.model, "query")
        if self._radios >= MAX_RADIOS:
            message = "too many radios are playing; try again later"
            raise ApiError(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_RADIOS", message, retry_after=30)
        radio = Radio(
            self._pool,
            self._searcher,
            principal().id,
            request.query,
            diversity=request.diversity,
            seed=request.seed,
            played=request.played,
        )
        self._radios += 1
        try:
            async with aclosing(radio.play()) as responses:
                async for response in responses:
                    yield response
        finally:
            self._radios -= 1

    async def OrderTracks(
        self, request: search_pb2.OrderTracksRequest, context: Context
    ) -> search_pb2.OrderTracksResponse:
        names = list(request.tracks)
        if request.first and request.first not in names:
            raise invalid("NOT_IN_TRACKS", "first must be one of the tracks", "first")
        fields = {f"tracks[{number}]": name for number, name in enumerate(names)}
        rows = await analyzed_tracks(self._pool, principal().id, fields)
        if len({row["id"] for row in rows.values()}) < len(names):  # written in several ways
            raise invalid("REPEATED_TRACK", "a track is named twice", "tracks")
        tunes = [Tune(rows[name]["bpm"], rows[name]["key"]) for name in names]
        numbers = await self._ordered(tunes, names.index(request.first) if request.first else None)
        steps = zip([None, *numbers], numbers, strict=False)
        return search_pb2.OrderTracksResponse(tracks=[_transition(names, tunes, *step) for step in steps])

    async def _ordered(self, tunes: list[Tune], first: int | None = None) -> list[int]:
        async with self._ordering:
            return await asyncio.to_thread(order, tunes, first)

    async def CreatePlaylist(
        self, request: search_pb2.CreatePlaylistRequest, context: Context
    ) -> search_pb2.CreatePlaylistResponse:
        values = playlists.columns_of(request.playlist, list(playlists.COLUMNS), self._searcher.model)
        row = await self._playlists.create(principal().id, UUID(request.request_id), values)
        return search_pb2.CreatePlaylistResponse(playlist=playlists.message(row))

    async def GetPlaylist(
        self, request: search_pb2.GetPlaylistRequest, context: Context
    ) -> search_pb2.GetPlaylistResponse:
        return search_pb2.GetPlaylistResponse(playlist=playlists.message(await self._playlist(request.name)))

    async def ListPlaylists(
        self, request: search_pb2.ListPlaylistsRequest, context: Context
    ) -> search_pb2.ListPlaylistsResponse:
        limit = page_limit(request.page_size)
        rows = await self._playlists.page(principal().id, limit + 1, read_time_token(request.page_token))
        page, size = search_pb2.ListPlaylistsResponse(), 0
        for row in rows[:limit]:
            page.playlists.append(playlists.message(row))
            size += page.playlists[-1].ByteSize()
            if size > _PAGE_BYTES:  # embeddings among the examples are large
                break
        if len(rows) > len(page.playlists):
            last = rows[len(page.playlists) - 1]
            page.next_page_token = write_token(last["created_at"].isoformat(), str(last["id"]))
        return page

    async def UpdatePlaylist(
        self, request: search_pb2.UpdatePlaylistRequest, context: Context
    ) -> search_pb2.UpdatePlaylistResponse:
        check_mask(request.update_mask.paths, playlists.COLUMNS)
        values = playlists.columns_of(request.playlist, request.update_mask.paths, self._searcher.model)
        row = await self._playlists.update(principal().id, _playlist_id(request.playlist.name), values)
        if row is None:
            raise not_found("playlist", request.playlist.name)
        return search_pb2.UpdatePlaylistResponse(playlist=playlists.message(row))

    async def DeletePlaylist(
        self, request: search_pb2.DeletePlaylistRequest, context: Context
    ) -> search_pb2.DeletePlaylistResponse:
        if not await self._playlists.delete(principal().id, _playlist_id(request.name)):
            raise not_found("playlist", request.name)
        return search_pb2.DeletePlaylistResponse()

    async def ListPlaylistTracks(
        self, request: search_pb2.ListPlaylistTracksRequest, context: Context
    ) -> search_pb2.ListPlaylistTracksResponse:
        playlist = playlists.message(await self._playlist(request.parent))
        hits = await self._searcher.search(principal().id, playlist.query, playlist.limit)
        if playlist.ordered and hits:
            tunes = [Tune(hit.bpm or None, camelot.position(hit.camelot) if hit.camelot else None) for hit in hits]
            hits = [hits[number] for number in await self._ordered(tunes)]
        return search_pb2.ListPlaylistTracksResponse(hits=hits)

    async def _playlist(self, name: str) -> Row:
        row = await self._playlists.get(principal().id, _playlist_id(name))
        if row is None:
            raise not_found("playlist", name)
        return row


def _playlist_id(name: str) -> UUID:
    if not name.startswith("playlists/"):
        raise invalid("INVALID_FIELD", "must be the name of a playlist", "playlist.name")
    return resource_id("playlist", name)


def _transition(names: list[str], tunes: list[Tune], before: int | None, number: int) -> search_pb2.Transition:
    if before is None:
        return search_pb2.Transition(track=names[number])
    return search_pb2.Transition(
        track=names[number],
        tempo_change_percent=tempo_change(tunes[before], tunes[number]),
        key_steps=key_steps(tunes[before], tunes[number]),
    )
