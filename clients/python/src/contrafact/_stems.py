"""Listening to a separation: the bytes of the stems while they are being made, none lost and none twice."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from contrafact import _words
from contrafact._channel import Connection
from contrafact._chunks import make_chunk, new_bytes
from contrafact._errors import ContrafactError, Unavailable
from contrafact._files import PartFile
from contrafact._retry import Attempts
from contrafact._watch import check_not_lost
from contrafact.v1 import job_pb2, stem_pb2
from contrafact.v1.audio_pb2 import StemKind

Positions: TypeAlias = "dict[StemKind.ValueType, int]"


@dataclass(frozen=True)
class StemProgress:
    """How far a stem has come.

    Attributes:
        stem: "vocals", "drums", "bass", "other" or "instrumental".
        path: where the finished file will be, or is.
        size_bytes: bytes on disk so far, in ``path`` with ".part" until it is finished.
        frames_ready: frames from the beginning that can be decoded by now; 0 when unknown.
        finished: whether the file is complete, checked, and has its name.
    """

    stem: str
    path: Path
    size_bytes: int
    frames_ready: int
    finished: bool


def wanted_stems(job: job_pb2.Job) -> list[StemKind.ValueType]:
    """Return the stems that a job makes."""
    return list(job.separation.stems) or _words.stem_kinds(_words.DEFAULT_STEMS)


def start_positions(job: job_pb2.Job, positions: Mapping[str, int] | None) -> Positions:
    """Return where to begin in each stem: as asked for by word, else at the beginning of all the job's."""
    if positions is None:
        return dict.fromkeys(wanted_stems(job), 0)
    return {_words.stem_kind(word): offset for word, offset in positions.items()}


async def stream_stems(
    connection: Connection, job: str, positions: Positions
) -> AsyncGenerator[stem_pb2.StreamStemsResponse, None]:
    """Yield bytes and ends of stems from ``positions`` on; see :meth:`contrafact.JobHandle.stems_live`."""
    missing = dict(positions)
    attempts = Attempts(connection)
    while missing:
        places = [stem_pb2.StemPosition(stem=stem, offset=offset) for stem, offset in missing.items()]
        request = stem_pb2.StreamStemsRequest(job=job, positions=places)
        try:
            async with contextlib.aclosing(
                connection.stream(connection.stems.StreamStems, request)
            ) as responses:
                async for response in responses:
                    fresh = _fresh(response, missing)
                    if fresh is not None:
                        attempts.progressed()
                        yield fresh
        except ContrafactError as error:
            if error.status in ("ABORTED", "FAILED_PRECONDITION", "CANCELLED"):
                await check_not_lost(connection, job)
            await attempts.failed(error)
        else:
            if missing:
                await check_not_lost(connection, job)
                words = ", ".join(map(_words.stem_word, missing))
                await attempts.failed(Unavailable(f"the stream ended without {words}", reason="STREAM_ENDED"))


def _fresh(response: stem_pb2.StreamStemsResponse, missing: Positions) -> stem_pb2.StreamStemsResponse | None:
    """Return what is new in a response, and move its position in ``missing`` on; None: nothing is."""
    if response.stem not in missing:
        return None
    position = missing[response.stem]
    if response.HasField("end"):
        if position < response.end.size_bytes:
            raise Unavailable(
                f"{_words.stem_word(response.stem)} ended at byte {position} of {response.end.size_bytes}",
                reason="STREAM_ENDED",
            )
        del missing[response.stem]
        return response
    data = new_bytes(response.chunk, position)
    if not data:
        return None
    missing[response.stem] = position + len(data)
    if len(data) == len(response.chunk.data):
        return response
    return stem_pb2.StreamStemsResponse(
        stem=response.stem, chunk=make_chunk(position, data), frames_ready=response.frames_ready
    )


async def save_live(
    connection: Connection,
    job: job_pb2.Job,
    folder: Path,
    progress: Callable[[StemProgress], None] | None = None,
) -> dict[str, Path]:
    """Write the stems of a job to a folder; see :meth:`contrafact.JobHandle.save_live`."""
    extension = _words.extension(job.separation.format)
    files: dict[StemKind.ValueType, PartFile] = {}
    saved: dict[str, Path] = {}
    positions = start_positions(job, None)
    try:
        for stem in positions:
            files[stem] = PartFile(folder / f"{_words.stem_word(stem)}.{extension}")
        async with contextlib.aclosing(stream_stems(connection, job.name, positions)) as responses:
            async for response in responses:
                word, file = _words.stem_word(response.stem), files[response.stem]
                if response.HasField("end"):
                    saved[word] = file.finish(response.end.sha256, response.end.size_bytes)
                else:
                    await file.write(response.chunk.data)
                if progress is not None:
                    frames = response.end.frames if word in saved else response.frames_ready
                    progress(StemProgress(word, file.path, file.size, frames, word in saved))
        return saved
    finally:
        for file in files.values():
            file.close()
