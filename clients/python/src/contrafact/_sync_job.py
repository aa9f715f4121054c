"""A job, for programs without an event loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from contrafact._job import JobHandle
from contrafact._result_stream import ResultProgress
from contrafact._stems import StemProgress
from contrafact._sync_loop import Loop
from contrafact.v1 import cover_pb2, job_pb2, mix_pb2, stem_pb2


class SyncJob:
    """A job, as :class:`contrafact.JobHandle`, with blocking methods."""

    def __init__(self, loop: Loop, handle: JobHandle) -> None:
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

    def stream_cover(self, offset: int = 0) -> Iterator[cover_pb2.StreamCoverResponse]:
        """See :meth:`contrafact.JobHandle.stream_cover`."""
        return self._loop.iterate(self._handle.stream_cover(offset))

    def save_cover(
        self, path: str | os.PathLike[str], progress: Callable[[ResultProgress], None] | None = None
    ) -> Path:
        """See :meth:`contrafact.JobHandle.save_cover`; ``progress`` is called in the client's thread."""
        return self._loop.run(self._handle.save_cover(path, progress))

    def stream_mix(self, offset: int = 0) -> Iterator[mix_pb2.StreamMixResponse]:
        """See :meth:`contrafact.JobHandle.stream_mix`."""
        return self._loop.iterate(self._handle.stream_mix(offset))

    def save_mix(
        self, path: str | os.PathLike[str], progress: Callable[[ResultProgress], None] | None = None
    ) -> Path:
        """See :meth:`contrafact.JobHandle.save_mix`; ``progress`` is called in the client's thread."""
        return self._loop.run(self._handle.save_mix(path, progress))
