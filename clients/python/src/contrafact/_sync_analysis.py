"""What the client without an event loop does with analyses, scans and searches.

Arguments that are only handed on are ``**options`` here: those of the method that the docstring names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from contrafact._client import Client
from contrafact._search import Sounds
from contrafact._source import Uploadable
from contrafact._sync_job import SyncJob
from contrafact._sync_loop import Loop
from contrafact.v1.analysis_pb2 import (
    Analysis,
    Embedding,
    GetAlbumLoudnessResponse,
    Scan,
    ScanItem,
    WatchAnalysisResponse,
    Waveform,
)
from contrafact.v1.search_pb2 import Playlist, TrackHit, Transition
from contrafact.v1.track_pb2 import Track


class SyncAnalysisMethods:
    """The methods of :class:`contrafact.SyncClient` that are about analyses and searches."""

    _client: Client
    _loop: Loop

    def update_track(self, track: Track | str, **options: Any) -> Track:
        """See :meth:`contrafact.Client.update_track`."""
        return self._loop.run(self._client.update_track(track, **options))

    def mark_track(self, track: Track | str, *marks: str, priority: str = "background") -> SyncJob | None:
        """See :meth:`contrafact.Client.mark_track`."""
        job = self._loop.run(self._client.mark_track(track, *marks, priority=priority))
        return None if job is None else SyncJob(self._loop, job)

    def analyze(self, track: Track | str, *, full: bool = False) -> Analysis:
        """See :meth:`contrafact.Client.analyze`."""
        return self._loop.run(self._client.analyze(track, full=full))

    def watch_analysis(self, track: Track | str, *, full: bool = False) -> Iterator[WatchAnalysisResponse]:
        """See :meth:`contrafact.Client.watch_analysis`."""
        return self._loop.iterate(self._client.watch_analysis(track, full=full))

    def analysis(self, track: Track | str, *, full: bool = False) -> Analysis | None:
        """See :meth:`contrafact.Client.analysis`."""
        return self._loop.run(self._client.analysis(track, full=full))

    def waveform(self, track: Track | str, **options: Any) -> Waveform:
        """See :meth:`contrafact.Client.waveform`."""
        return self._loop.run(self._client.waveform(track, **options))

    def album_loudness(self, tracks: Iterable[Track | str]) -> GetAlbumLoudnessResponse:
        """See :meth:`contrafact.Client.album_loudness`."""
        return self._loop.run(self._client.album_loudness(tracks))

    def scan(self, tracks: Iterable[Track | str] | None = None, **options: Any) -> Iterator[Scan]:
        """See :meth:`contrafact.Client.scan`."""
        return self._loop.iterate(self._client.scan(tracks, **options))

    def watch_scan(self, scan: Scan | str) -> Iterator[Scan]:
        """See :meth:`contrafact.Client.watch_scan`."""
        return self._loop.iterate(self._client.watch_scan(scan))

    def scan_of(self, name: str) -> Scan:
        """See :meth:`contrafact.Client.scan_of`."""
        return self._loop.run(self._client.scan_of(name))

    def scans(self, *, page_size: int = 0) -> Iterator[Scan]:
        """See :meth:`contrafact.Client.scans`."""
        return self._loop.iterate(self._client.scans(page_size=page_size))

    def cancel_scan(self, scan: Scan | str) -> Scan:
        """See :meth:`contrafact.Client.cancel_scan`."""
        return self._loop.run(self._client.cancel_scan(scan))

    def scan_items(self, scan: Scan | str, **options: Any) -> Iterator[ScanItem]:
        """See :meth:`contrafact.Client.scan_items`."""
        return self._loop.iterate(self._client.scan_items(scan, **options))

    def search(self, *examples: Sounds, **options: Any) -> Sequence[TrackHit]:
        """See :meth:`contrafact.Client.search`."""
        return self._loop.run(self._client.search(*examples, **options))

    def embed_clip(self, what: Uploadable, **options: Any) -> Embedding:
        """See :meth:`contrafact.Client.embed_clip`."""
        return self._loop.run(self._client.embed_clip(what, **options))

    def radio(self, *examples: Sounds, **options: Any) -> Iterator[TrackHit]:
        """See :meth:`contrafact.Client.radio`."""
        return self._loop.iterate(self._client.radio(*examples, **options))

    def order(self, tracks: Iterable[Track | str], *, first: Track | str = "") -> Sequence[Transition]:
        """See :meth:`contrafact.Client.order`."""
        return self._loop.run(self._client.order(tracks, first=first))

    def create_playlist(self, display_name: str, *examples: Sounds, **options: Any) -> Playlist:
        """See :meth:`contrafact.Client.create_playlist`."""
        return self._loop.run(self._client.create_playlist(display_name, *examples, **options))

    def playlist(self, name: str) -> Playlist:
        """See :meth:`contrafact.Client.playlist`."""
        return self._loop.run(self._client.playlist(name))

    def playlists(self, *, page_size: int = 0) -> Iterator[Playlist]:
        """See :meth:`contrafact.Client.playlists`."""
        return self._loop.iterate(self._client.playlists(page_size=page_size))

    def update_playlist(self, playlist: Playlist | str, **options: Any) -> Playlist:
        """See :meth:`contrafact.Client.update_playlist`."""
        return self._loop.run(self._client.update_playlist(playlist, **options))

    def delete_playlist(self, playlist: Playlist | str) -> None:
        """See :meth:`contrafact.Client.delete_playlist`."""
        self._loop.run(self._client.delete_playlist(playlist))

    def playlist_tracks(self, playlist: Playlist | str) -> Sequence[TrackHit]:
        """See :meth:`contrafact.Client.playlist_tracks`."""
        return self._loop.run(self._client.playlist_tracks(playlist))
