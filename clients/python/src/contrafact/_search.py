"""What a client finds by sound."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from typing import Any

from contrafact._analysis import track_name
from contrafact._channel import Connection
from contrafact._chunks import source_chunks
from contrafact._errors import ContrafactError
from contrafact._retry import Attempts
from contrafact._send import send_sources
from contrafact._source import Source, Uploadable, open_source
from contrafact.v1 import search_pb2
from contrafact.v1.analysis_pb2 import Embedding
from contrafact.v1.search_pb2 import Example, Playlist, TrackFilter, TrackHit, TrackQuery, TrackSegment
from contrafact.v1.search_pb2_grpc import SearchServiceStub
from contrafact.v1.track_pb2 import Track

Sounds = Track | str | TrackSegment | Embedding | Example
"""What results are to sound like: a track, a stretch of one, a clip, or one of these with a weight."""

Bounds = tuple[float | None, float | None]
"""Least and greatest; None: any."""


def example(sound: Sounds, weight: float = 0.0) -> Example:
    """Return an example for a search; ``weight`` from -1 (unlike it) to 1, 0: 1."""
    if isinstance(sound, Example):
        return sound
    if isinstance(sound, TrackSegment):
        return Example(segment=sound, weight=weight)
    if isinstance(sound, Embedding):
        return Example(embedding=sound, weight=weight)
    return Example(track=track_name(sound), weight=weight)


def track_query(
    *examples: Sounds,
    bpm: Bounds = (None, None),
    any_octave: bool = False,
    keys: Iterable[str] = (),
    compatible_keys: bool = False,
    lufs: Bounds = (None, None),
    seconds: Bounds = (None, None),
    tags: Iterable[str] = (),
    without_tags: Iterable[str] = (),
    exclude: Iterable[Track | str] = (),
    min_similarity: float | None = None,
) -> TrackQuery:
    """Return a query.

    Args:
        examples: what results are to sound like; none: the newest tracks come first.
        bpm: slowest and fastest tempo, in beats a minute.
        any_octave: half and double the tempo will do as well.
        keys: Camelot codes such as "8A", one of which it must have.
        compatible_keys: their neighbours on the wheel will do as well.
        lufs: least and greatest integrated loudness.
        seconds: shortest and greatest length.
        tags: all of which it must have.
        without_tags: none of which it may have.
        exclude: tracks that are not to be found.
        min_similarity: least similarity to the examples, -1 to 1.
    """
    found = TrackFilter(
        min_bpm=bpm[0],
        max_bpm=bpm[1],
        any_octave=any_octave,
        keys=keys,
        compatible_keys=compatible_keys,
        min_lufs=lufs[0],
        max_lufs=lufs[1],
        min_seconds=seconds[0],
        max_seconds=seconds[1],
        tags=tags,
        without_tags=without_tags,
        exclude=map(track_name, exclude),
    )
    return TrackQuery(examples=map(example, examples), filter=found, min_similarity=min_similarity)


class SearchMethods:
    """The methods of :class:`contrafact.Client` that find tracks by their sound."""

    _connection: Connection

    async def search(
        self, *examples: Sounds, limit: int = 0, exact: bool = False, **filters: Any
    ) -> Sequence[TrackHit]:
        """Find the tracks most similar to examples or, without examples, the newest, that pass a filter.

        Args:
            examples: tracks, stretches of tracks, embeddings of clips, or these with weights.
            limit: most tracks to return, at most 500; 0: 20.
            exact: compare with all tracks, however many there are.
            **filters: as for :func:`contrafact.track_query`.

        Raises:
            FailedPrecondition: an example is not analysed.
        """
        request = search_pb2.SearchTracksRequest(
            query=track_query(*examples, **filters), limit=limit, exact=exact
        )
        return (await self._connection.unary(self._connection.searches.SearchTracks, request)).hits

    async def embed_clip(self, what: Uploadable, *, start: float = 0.0, seconds: float = 0.0) -> Embedding:
        """Return what a clip sounds like, to search by. Nothing of it is kept by the server.

        Args:
            what: an audio file: a path; a file open for reading in binary; or bytes. At most 50 MB.
            start: where in it to begin, in seconds.
            seconds: how much of it to use, at most 600; 0: all.

        Raises:
            InvalidArgument: it is no sound audio, or nothing can be told of it.
            OSError: it cannot be read.
        """
        spec = search_pb2.ClipSpec(start_seconds=start, seconds=seconds)
        source = open_source(what, "clip")
        try:
            await source.measure()
            response: search_pb2.EmbedClipResponse = await send_sources(
                self._connection,
                lambda: SearchServiceStub(self._connection.blocking_channel).EmbedClip,
                lambda: _clip_messages(spec, source),
                [source],
            )
            return response.embedding
        finally:
            source.close()

    async def radio(
        self,
        *examples: Sounds,
        diversity: float = 0.3,
        seed: int = 0,
        played: Iterable[Track | str] = (),
        **filters: Any,
    ) -> AsyncGenerator[TrackHit, None]:
        """Yield tracks that go on from examples, without end, none twice until all were played.

        A connection that breaks is taken up again after the last track.

        Args:
            examples: where it starts; none: anywhere.
            diversity: from 0, what is most similar to the examples, to 1, what differs most from the last.
            seed: the same one gives the same radio.
            played: what was played before, the latest last.
            **filters: as for :func:`contrafact.track_query`.
        """
        request = search_pb2.StreamRadioRequest(
            query=track_query(*examples, **filters),
            diversity=diversity,
            seed=seed,
            played=map(track_name, played),
        )
        attempts = Attempts(self._connection)
        while True:
            stream = self._connection.stream(self._connection.searches.StreamRadio, request)
            try:
                async with contextlib.aclosing(stream) as responses:
                    async for response in responses:
                        attempts.progressed()
                        request.played.append(response.hit.track.name)
                        del request.played[:-10_000]
                        yield response.hit
                return  # there is nothing to play
            except ContrafactError as error:
                await attempts.failed(error)

    async def order(
        self, tracks: Iterable[Track | str], *, first: Track | str = ""
    ) -> Sequence[search_pb2.Transition]:
        """Put analysed tracks in an order in which tempo and key change as little as possible.

        Args:
            tracks: at most 1,000, each once.
            first: which comes first; empty: whichever is best.
        """
        request = search_pb2.OrderTracksRequest(tracks=map(track_name, tracks), first=track_name(first))
        return (await self._connection.unary(self._connection.searches.OrderTracks, request)).tracks

    async def create_playlist(
        self,
        display_name: str,
        *examples: Sounds,
        limit: int = 0,
        ordered: bool = False,
        request_id: str | None = None,
        **filters: Any,
    ) -> Playlist:
        """Save a query as a smart playlist.

        Args:
            display_name: what to call it, 1 to 255 characters.
            examples: what its tracks are to sound like.
            limit: most tracks in it, at most 500; 0: 100.
            ordered: whether they come in the order of :meth:`order`.
            request_id: a UUID; the same one gives the same playlist. None: a new one.
            **filters: as for :func:`contrafact.track_query`.
        """
        playlist = Playlist(
            display_name=display_name,
            query=track_query(*examples, **filters),
            limit=limit,
            ordered=ordered,
        )
        request = search_pb2.CreatePlaylistRequest(
            request_id=request_id or str(uuid.uuid4()), playlist=playlist
        )
        return (await self._connection.unary(self._connection.searches.CreatePlaylist, request)).playlist

    async def playlist(self, name: str) -> Playlist:
        """Get one playlist by its resource name, "playlists/{id}"."""
        request = search_pb2.GetPlaylistRequest(name=name)
        return (await self._connection.unary(self._connection.searches.GetPlaylist, request)).playlist

    def playlists(self, *, page_size: int = 0) -> AsyncGenerator[Playlist, None]:
        """Yield the caller's playlists, newest first, asking for page after page."""
        request = search_pb2.ListPlaylistsRequest(page_size=page_size)
        return self._connection.pages(lambda: self._connection.searches.ListPlaylists, request, "playlists")

    async def update_playlist(
        self,
        playlist: Playlist | str,
        *,
        display_name: str | None = None,
        query: TrackQuery | None = None,
        limit: int | None = None,
        ordered: bool | None = None,
    ) -> Playlist:
        """Change a playlist; what is None stays as it is."""
        given = {"display_name": display_name, "query": query, "limit": limit, "ordered": ordered}
        changes = {path: value for path, value in given.items() if value is not None}
        request = search_pb2.UpdatePlaylistRequest(playlist=Playlist(name=_name(playlist), **changes))  # type: ignore[arg-type]
        request.update_mask.paths.extend(changes)
        return (await self._connection.unary(self._connection.searches.UpdatePlaylist, request)).playlist

    async def delete_playlist(self, playlist: Playlist | str) -> None:
        """Delete a playlist; its tracks stay."""
        request = search_pb2.DeletePlaylistRequest(name=_name(playlist))
        await self._connection.unary(self._connection.searches.DeletePlaylist, request)

    async def playlist_tracks(self, playlist: Playlist | str) -> Sequence[TrackHit]:
        """Return the tracks that are in a playlist now."""
        request = search_pb2.ListPlaylistTracksRequest(parent=_name(playlist))
        return (await self._connection.unary(self._connection.searches.ListPlaylistTracks, request)).hits


def _name(playlist: Playlist | str) -> str:
    return playlist if isinstance(playlist, str) else playlist.name


def _clip_messages(spec: search_pb2.ClipSpec, source: Source) -> Iterator[search_pb2.EmbedClipRequest]:
    """Yield the specification, the bytes and the end."""
    yield search_pb2.EmbedClipRequest(spec=spec)
    size = 0
    for chunk in source_chunks(source):
        yield search_pb2.EmbedClipRequest(chunk=chunk)
        size += len(chunk.data)
    yield search_pb2.EmbedClipRequest(end=search_pb2.ClipEnd(size_bytes=size))
