"""The same client for programs without an event loop: each call runs on a loop in a thread of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from contrafact._client import Client
from contrafact._download import Downloadable
from contrafact._retry import Retry
from contrafact._send import ByteProgress
from contrafact._source import Uploadable
from contrafact._sync_analysis import SyncAnalysisMethods
from contrafact._sync_job import SyncJob
from contrafact._sync_loop import Loop
from contrafact._sync_mixes import SyncMixMethods
from contrafact._sync_voices import SyncVoiceMethods
from contrafact.v1 import job_pb2, track_pb2
from contrafact.v1.artifact_pb2 import Artifact

if TYPE_CHECKING:
    import grpc


class SyncClient(SyncVoiceMethods, SyncAnalysisMethods, SyncMixMethods):
    """:class:`contrafact.Client` with blocking methods, safe to use from any thread.

        with SyncClient() as client:
            track = client.upload("song.flac")

    Progress callbacks are called in the client's own thread, where its methods raise RuntimeError.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        retry: Retry | None = None,
    ) -> None:
        self._client = Client(address, token=token, credentials=credentials, retry=retry)
        self._loop = Loop()

    @property
    def address(self) -> str:
        """The server's host and port."""
        return self._client.address

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self, timeout: float = 5.0) -> None:
        """See :meth:`contrafact.Client.connect`."""
        self._loop.run(self._client.connect(timeout))

    def close(self) -> None:
        """Close the connection and end the client's thread; calls in other threads raise Unavailable."""
        if self._loop.running:
            self._loop.run(self._client.close())
            self._loop.stop()

    def upload(
        self,
        what: Uploadable,
        *,
        display_name: str | None = None,
        progress: ByteProgress | None = None,
        request_id: str | None = None,
    ) -> track_pb2.Track:
        """See :meth:`contrafact.Client.upload`."""
        return self._loop.run(
            self._client.upload(what, display_name=display_name, progress=progress, request_id=request_id)
        )

    def track(self, name: str) -> track_pb2.Track:
        """See :meth:`contrafact.Client.track`."""
        return self._loop.run(self._client.track(name))

    def tracks(
        self, *, display_name_contains: str = "", tags: Iterable[str] = (), page_size: int = 0
    ) -> Iterator[track_pb2.Track]:
        """See :meth:`contrafact.Client.tracks`."""
        return self._loop.iterate(
            self._client.tracks(display_name_contains=display_name_contains, tags=tags, page_size=page_size)
        )

    def delete_track(self, name: str, *, cancel_jobs: bool = False) -> None:
        """See :meth:`contrafact.Client.delete_track`."""
        self._loop.run(self._client.delete_track(name, cancel_jobs=cancel_jobs))

    def separate(
        self,
        track: track_pb2.Track | str,
        *,
        stems: str | Iterable[str] = (),
        format: str = "flac",
        priority: str = "interactive",
        model: str = "",
        request_id: str | None = None,
    ) -> SyncJob:
        """See :meth:`contrafact.Client.separate`."""
        work = self._client.separate(
            track, stems=stems, format=format, priority=priority, model=model, request_id=request_id
        )
        return SyncJob(self._loop, self._loop.run(work))

    def job(self, name: str) -> SyncJob:
        """See :meth:`contrafact.Client.job`."""
        return SyncJob(self._loop, self._loop.run(self._client.job(name)))

    def jobs(
        self, *, states: Iterable[str] = (), track: str = "", page_size: int = 0
    ) -> Iterator[job_pb2.Job]:
        """See :meth:`contrafact.Client.jobs`."""
        return self._loop.iterate(self._client.jobs(states=states, track=track, page_size=page_size))

    def stem(self, name: str) -> Artifact:
        """See :meth:`contrafact.Client.stem`."""
        return self._loop.run(self._client.stem(name))

    def stems(self, track: track_pb2.Track | str, *, page_size: int = 0) -> Iterator[Artifact]:
        """See :meth:`contrafact.Client.stems`."""
        return self._loop.iterate(self._client.stems(track, page_size=page_size))

    def download(
        self,
        what: str | Downloadable,
        path: str | os.PathLike[str],
        *,
        progress: ByteProgress | None = None,
    ) -> Path:
        """See :meth:`contrafact.Client.download`."""
        return self._loop.run(self._client.download(what, path, progress=progress))
