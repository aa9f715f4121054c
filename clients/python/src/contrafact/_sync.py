"""The same client for programs without an event loop: each call runs on a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from contrafact._client import Client
from contrafact._download import Downloadable
from contrafact._job import JobHandle
from contrafact._retry import Retry
from contrafact._source import Uploadable
from contrafact._stems import StemProgress
from contrafact._upload import ByteProgress
from contrafact.v1 import job_pb2, stem_pb2, track_pb2
from contrafact.v1.artifact_pb2 import Artifact

if TYPE_CHECKING:
    import grpc

T = TypeVar("T")


class _Loop:
    """An event loop in a background thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="contrafact", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether work can be given to it."""
        return self._loop.is_running()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; an interrupted caller cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """Iterate over an asynchronous generator, and close it however the iteration ends."""
        try:
            while True:
                try:
                    item = self.run(anext(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if self.running:
                self.run(items.aclose())

    def stop(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class SyncJob:
    """A job, as :class:`contrafact.JobHandle`, with blocking methods."""

    def __init__(self, loop: _Loop, handle: JobHandle) -> None:
        self._loop = loop
        self._handle = handle

    @property
    def name(self) -> str:
        """Resource name, "jobs/{id}"."""
        return self._handle.name

    @property
    def job(self) -> job_pb2.Job:
        """The job as it was when last heard of."""
        return self._handle.job

    def refresh(self) -> job_pb2.Job:
        """See :meth:`contrafact.JobHandle.refresh`."""
        return self._loop.run(self._handle.refresh())

    def watch(self, cursor: str = "") -> Iterator[job_pb2.JobEvent]:
        """See :meth:`contrafact.JobHandle.watch`."""
        return self._loop.iterate(self._handle.watch(cursor))

    def wait(self, progress: Callable[[job_pb2.JobEvent], None] | None = None) -> job_pb2.Job:
        """See :meth:`contrafact.JobHandle.wait`; ``progress`` is called in the client's thread."""
        return self._loop.run(self._handle.wait(progress))

    def cancel(self) -> job_pb2.Job:
        """See :meth:`contrafact.JobHandle.cancel`."""
        return self._loop.run(self._handle.cancel())

    def stems_live(
        self, positions: Mapping[str, int] | None = None
    ) -> Iterator[stem_pb2.StreamStemsResponse]:
        """See :meth:`contrafact.JobHandle.stems_live`."""
        return self._loop.iterate(self._handle.stems_live(positions))

    def save_live(
        self, folder: str | os.PathLike[str], progress: Callable[[StemProgress], None] | None = None
    ) -> dict[str, Path]:
        """See :meth:`contrafact.JobHandle.save_live`; ``progress`` is called in the client's thread."""
        return self._loop.run(self._handle.save_live(folder, progress))


class SyncClient:
    """:class:`contrafact.Client` with blocking methods, safe to use from any thread.

        with SyncClient() as client:
            track = client.upload("song.flac")

    Progress callbacks are called in the client's own thread.
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
        self._loop = _Loop()

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
        """Close the connection, and end the client's thread."""
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

    def tracks(self, *, display_name_contains: str = "", page_size: int = 0) -> Iterator[track_pb2.Track]:
        """See :meth:`contrafact.Client.tracks`."""
        return self._loop.iterate(
            self._client.tracks(display_name_contains=display_name_contains, page_size=page_size)
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
