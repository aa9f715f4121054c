"""A job as its owner handles it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path

from contrafact._channel import Connection
from contrafact._errors import Unavailable
from contrafact._result_stream import COVER, MIX, ResultProgress, save_result, stream_result
from contrafact._stems import StemProgress, save_live, start_positions, stream_stems
from contrafact._watch import FINAL, get_job, succeeded, watch
from contrafact.v1 import cover_pb2, job_pb2, mix_pb2, stem_pb2


class JobHandle:
    """One job on the server. Get it from :meth:`Client.separate`, :meth:`Client.cover` or :meth:`Client.job`.

    Attributes:
        job: the job as it was when last heard of.
    """

    def __init__(self, connection: Connection, job: job_pb2.Job) -> None:
        self._connection = connection
        self.job = job

    def __repr__(self) -> str:
        return f"<JobHandle {self.name} {job_pb2.JobState.Name(self.job.state)}>"

    @property
    def name(self) -> str:
        """Resource name, "jobs/{id}"."""
        return self.job.name

    async def refresh(self) -> job_pb2.Job:
        """Ask for the job as it is now."""
        self.job = await get_job(self._connection, self.name)
        return self.job

    async def watch(self, cursor: str = "") -> AsyncGenerator[job_pb2.JobEvent, None]:
        """Yield what happened to the job so far, then what happens, until its end.

        A broken connection is taken up again after the last event received, so no event is lost.

        Args:
            cursor: only what happened after the event with this cursor; empty: from the beginning.
        """
        async with contextlib.aclosing(watch(self._connection, self.name, cursor)) as events:
            async for event in events:
                if event.HasField("job"):
                    self.job = event.job
                yield event

    async def wait(self, progress: Callable[[job_pb2.JobEvent], None] | None = None) -> job_pb2.Job:
        """Wait until the job has succeeded.

        Args:
            progress: called with every event.

        Returns:
            The job with its artifacts.

        Raises:
            JobFailed: the job failed; ``reason`` and ``message`` say why.
            JobCancelled: somebody cancelled it.
        """
        async with contextlib.aclosing(self.watch()) as events:
            async for event in events:
                if progress is not None:
                    progress(event)
                if event.HasField("job") and event.job.state in FINAL:
                    return succeeded(event.job)
        if self.job.state not in FINAL:
            raise Unavailable("the watch ended before the job", reason="STREAM_ENDED")
        return succeeded(self.job)

    async def cancel(self) -> job_pb2.Job:
        """Cancel the job. Running work stops within a segment; a job that has ended stays as it is."""
        request = job_pb2.CancelJobRequest(name=self.name)
        self.job = (await self._connection.unary(self._connection.jobs.CancelJob, request)).job
        return self.job

    async def stems_live(
        self, positions: Mapping[str, int] | None = None
    ) -> AsyncGenerator[stem_pb2.StreamStemsResponse, None]:
        """Yield the bytes of the stems while they are being made, each stem in order, and the end of each.

        Every chunk is checked, and broken connections are taken up again, so that the chunks of a stem put
        together are its finished file, whenever the listening began.

        Args:
            positions: the stems wanted, by word, and the first byte wanted of each; None: all of the job's.

        Raises:
            JobFailed: the job failed while it was listened to.
            JobCancelled: it was cancelled.
            DataLoss: bytes arrived damaged.
        """
        places = start_positions(self.job, positions)
        async with contextlib.aclosing(stream_stems(self._connection, self.name, places)) as responses:
            async for response in responses:
                yield response

    async def save_live(
        self, folder: str | os.PathLike[str], progress: Callable[[StemProgress], None] | None = None
    ) -> dict[str, Path]:
        """Write the stems to files while they are being made, for example ``vocals.flac``.

        A stem is in ``vocals.flac.part`` until its end has arrived and its SHA-256 is right. When anything
        fails, the parts are removed; finished stems stay.

        Args:
            folder: where to; it is made if it is not there. Files of the same name are replaced.
            progress: called after every piece.

        Returns:
            The finished files by stem: "vocals", "drums", …

        Raises:
            JobFailed: the job failed.
            JobCancelled: it was cancelled.
            DataLoss: bytes arrived damaged.
            OSError: the files cannot be written.
        """
        return await save_live(self._connection, self.job, Path(folder), progress)

    async def stream_cover(self, offset: int = 0) -> AsyncGenerator[cover_pb2.StreamCoverResponse, None]:
        """Yield the bytes of the cover while it is being made, in order, and its end.

        Every chunk is checked, and a broken connection is taken up again, so that the chunks put together are
        the finished file, whenever the listening began. Only where another attempt had to take over and made
        other bytes, which can happen on a GPU, a listener from the beginning gets chunks from offset 0 on
        once more: what came before them is to be forgotten.

        Args:
            offset: first byte wanted.

        Raises:
            JobFailed: the job failed while it was listened to.
            JobCancelled: it was cancelled.
            DataLoss: bytes arrived damaged, or do not belong to what came before ``offset``.
        """
        async with contextlib.aclosing(
            stream_result(self._connection, COVER, self.name, offset)
        ) as responses:
            async for response in responses:
                yield response

    async def save_cover(
        self, path: str | os.PathLike[str], progress: Callable[[ResultProgress], None] | None = None
    ) -> Path:
        """Write the cover to a file while it is being made.

        It is in PATH.part until its end has arrived and its SHA-256 is right. When anything fails, that is
        removed, and an older file at PATH stays.

        Args:
            path: where to; its folder is made if it is not there.
            progress: called after every piece.

        Raises:
            JobFailed: the job failed.
            JobCancelled: it was cancelled.
            DataLoss: bytes arrived damaged.
            OSError: the file cannot be written.
        """
        return await save_result(self._connection, COVER, self.name, Path(path), progress)

    async def stream_mix(self, offset: int = 0) -> AsyncGenerator[mix_pb2.StreamMixResponse, None]:
        """Yield the bytes of the mix while it is being rendered; as :meth:`stream_cover` does of a cover."""
        async with contextlib.aclosing(stream_result(self._connection, MIX, self.name, offset)) as responses:
            async for response in responses:
                yield response

    async def save_mix(
        self, path: str | os.PathLike[str], progress: Callable[[ResultProgress], None] | None = None
    ) -> Path:
        """Write the mix to a file while it is being rendered; as :meth:`save_cover` does with a cover."""
        return await save_result(self._connection, MIX, self.name, Path(path), progress)
