"""The client."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from contrafact import _words
from contrafact._analysis import AnalysisMethods
from contrafact._channel import Connection
from contrafact._covers import CoverMethods
from contrafact._download import Downloadable, download
from contrafact._job import JobHandle
from contrafact._mixes import MixMethods
from contrafact._retry import Retry
from contrafact._search import SearchMethods
from contrafact._send import ByteProgress
from contrafact._source import Uploadable, open_source
from contrafact._styles import StyleMethods
from contrafact._upload import upload
from contrafact._voices import VoiceMethods
from contrafact._watch import get_job
from contrafact.v1 import job_pb2, stem_pb2, track_pb2
from contrafact.v1.artifact_pb2 import Artifact

if TYPE_CHECKING:
    import grpc


class Client(VoiceMethods, CoverMethods, AnalysisMethods, SearchMethods, StyleMethods, MixMethods):
    """A client of one Contrafact server. Use it in one event loop, and for as many calls at once as you like.

        async with Client() as client:
            track = await client.upload("song.flac")

    Every call raises :class:`contrafact.ContrafactError` or one of its subclasses when the server refuses it
    or cannot be reached.

    Args:
        address: "host:port", or "https://host:port" for TLS; None: $CONTRAFACT_ADDRESS, else 127.0.0.1:50051.
        token: bearer token sent with every call; None: $CONTRAFACT_TOKEN, if any.
        credentials: channel credentials for TLS with other than the default roots.
        retry: bounds of automatic resumption of broken streams.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        retry: Retry | None = None,
    ) -> None:
        self._connection = Connection(address, token=token, credentials=credentials, retry=retry)

    @property
    def address(self) -> str:
        """The server's host and port."""
        return self._connection.address

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self, timeout: float = 5.0) -> None:
        """Make sure that the server can be reached, within ``timeout`` seconds. Optional: calls connect too.

        Raises:
            Unavailable: nothing answers at the address, at the first refusal or at the end of the time.
        """
        await self._connection.connect(timeout)

    async def close(self) -> None:
        """Close the connection and end its calls, for good: later ones raise Unavailable, CLIENT_CLOSED."""
        await self._connection.close()

    async def upload(
        self,
        what: Uploadable,
        *,
        display_name: str | None = None,
        progress: ByteProgress | None = None,
        request_id: str | None = None,
    ) -> track_pb2.Track:
        """Upload a recording, going on where it broke off when the connection is lost.

        Args:
            what: a path; a file open for reading in binary; or bytes. It is read once before it is sent, for
                its SHA-256, so that a recording the server has is not sent again. A pipe is sent as it
                comes, and cannot be resumed.
            display_name: what to call the track, up to 255 characters; None: the file's name without folders.
            progress: called with bytes sent and bytes in all (None: unknown), at every 512 KiB.
            request_id: a UUID that names the upload, to go on with it in another process; None: a new one,
                and what was stored is removed when the upload is given up.

        Returns:
            The track; one that the caller had before, if its bytes are the same.

        Raises:
            InvalidArgument: the server cannot decode it from end to end, or it is not audio.
            OSError: it cannot be read.
            ValueError: bytes need a ``display_name``.
        """
        source = open_source(what, display_name)
        try:
            await source.measure()
            return await upload(self._connection, source, progress, request_id)
        finally:
            source.close()

    async def track(self, name: str) -> track_pb2.Track:
        """Get one track by its resource name, "tracks/{id}"."""
        request = track_pb2.GetTrackRequest(name=name)
        return (await self._connection.unary(self._connection.tracks.GetTrack, request)).track

    def tracks(
        self, *, display_name_contains: str = "", tags: Iterable[str] = (), page_size: int = 0
    ) -> AsyncGenerator[track_pb2.Track, None]:
        """Yield the caller's tracks, newest first, asking for page after page.

        Args:
            display_name_contains: only tracks whose display name contains this, ignoring case.
            tags: only tracks with all of these.
            page_size: tracks to ask for at once, at most 1,000; 0: the server's choice.
        """
        request = track_pb2.ListTracksRequest(
            page_size=page_size, display_name_contains=display_name_contains, tags=tags
        )
        return self._connection.pages(lambda: self._connection.tracks.ListTracks, request, "tracks")

    async def delete_track(self, name: str, *, cancel_jobs: bool = False) -> None:
        """Delete a track, its bytes and its stems.

        Args:
            name: resource name, "tracks/{id}".
            cancel_jobs: cancel the track's unfinished jobs instead of raising FailedPrecondition.
        """
        request = track_pb2.DeleteTrackRequest(name=name, cancel_jobs=cancel_jobs)
        await self._connection.unary(self._connection.tracks.DeleteTrack, request)

    async def separate(
        self,
        track: track_pb2.Track | str,
        *,
        stems: str | Iterable[str] = (),
        format: str = "flac",
        priority: str = "interactive",
        model: str = "",
        request_id: str | None = None,
    ) -> JobHandle:
        """Create a job that separates a track into stems. Stems that exist already are not made again.

        Args:
            track: the track or its resource name.
            stems: any of "vocals", "drums", "bass", "other", "instrumental", or "all"; none: the first four.
            format: "flac", "wav", "mp3" or "opus".
            priority: "interactive" when a person is waiting, else "background".
            model: the model; empty: the server's default.
            request_id: a UUID; the same one gives the same job. None: a new one.

        Raises:
            ValueError: a stem, format or priority is not one of those.
        """
        spec = job_pb2.SeparationSpec(
            track=track if isinstance(track, str) else track.name,
            stems=_words.stem_kinds(stems),
            format=_words.audio_format(format),
            model=model,
        )
        request = stem_pb2.CreateSeparationRequest(
            request_id=request_id or str(uuid.uuid4()), spec=spec, priority=_words.priority(priority)
        )
        response = await self._connection.unary(self._connection.stems.CreateSeparation, request)
        return JobHandle(self._connection, response.job)

    async def job(self, name: str) -> JobHandle:
        """Get one job by its resource name, "jobs/{id}"."""
        return JobHandle(self._connection, await get_job(self._connection, name))

    def jobs(
        self, *, states: Iterable[str] = (), track: str = "", page_size: int = 0
    ) -> AsyncGenerator[job_pb2.Job, None]:
        """Yield the caller's jobs, newest first, asking for page after page.

        Args:
            states: only jobs that are "queued", "running", "succeeded", "failed" or "cancelled"; none: all.
            track: only jobs of this track, "tracks/{id}"; empty: all.
            page_size: jobs to ask for at once, at most 1,000; 0: the server's choice.
        """
        wanted = [_words.state(word) for word in states]
        request = job_pb2.ListJobsRequest(page_size=page_size, states=wanted, track=track)
        return self._connection.pages(lambda: self._connection.jobs.ListJobs, request, "jobs")

    async def stem(self, name: str) -> Artifact:
        """Get one stored stem by its resource name, "tracks/{track}/stems/{stem}"."""
        request = stem_pb2.GetStemRequest(name=name)
        return (await self._connection.unary(self._connection.stems.GetStem, request)).stem

    def stems(self, track: track_pb2.Track | str, *, page_size: int = 0) -> AsyncGenerator[Artifact, None]:
        """Yield the stored stems of a track, by name, asking for page after page."""
        parent = track if isinstance(track, str) else track.name
        request = stem_pb2.ListStemsRequest(parent=parent, page_size=page_size)
        return self._connection.pages(lambda: self._connection.stems.ListStems, request, "stems")

    async def download(
        self,
        what: str | Downloadable,
        path: str | os.PathLike[str],
        *,
        progress: ByteProgress | None = None,
    ) -> Path:
        """Download a stem, a cover, a mix, the preview of a style, or the recording of a track.

        It goes on where it broke off.

        Args:
            what: an artifact, a cover, a mix, a track, or the resource name of one, or of a style.
            path: where to; a folder that exists, or ends in a slash: there, under the last part of its name,
                or under the track's display name. Until all bytes have arrived they are in PATH.part.
            progress: called with bytes received and bytes in all.

        Returns:
            The finished file.

        Raises:
            DataLoss: bytes arrived damaged; no file is left.
            OSError: the file cannot be written.
        """
        return await download(self._connection, what, path, progress)
