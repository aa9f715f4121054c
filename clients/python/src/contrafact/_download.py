"""Downloads that go on where they broke off."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path

from contrafact._channel import Connection
from contrafact._chunks import new_bytes
from contrafact._errors import ContrafactError, Unavailable
from contrafact._files import PartFile
from contrafact._retry import Attempts
from contrafact._source import base_name
from contrafact._upload import ByteProgress
from contrafact.v1 import stem_pb2, track_pb2
from contrafact.v1.artifact_pb2 import Artifact
from contrafact.v1.audio_pb2 import DataChunk

Downloadable = Artifact | track_pb2.Track


async def find(connection: Connection, what: str | Downloadable) -> Downloadable:
    """Return the artifact or the track of a resource name."""
    if not isinstance(what, str):
        return what
    if "/stems/" in what:
        return (await connection.unary(connection.stems.GetStem, stem_pb2.GetStemRequest(name=what))).stem
    return (await connection.unary(connection.tracks.GetTrack, track_pb2.GetTrackRequest(name=what))).track


async def download(
    connection: Connection,
    what: str | Downloadable,
    place: str | os.PathLike[str],
    progress: ByteProgress | None = None,
) -> Path:
    """Download an artifact or a track; see :meth:`contrafact.Client.download`."""
    found = await find(connection, what)
    path, into_folder = Path(place), os.fspath(place).endswith(("/", os.sep))
    if into_folder or path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        name = found.name if isinstance(found, Artifact) else found.display_name
        path = path / (base_name(name).strip(". ") or "download")
    file = PartFile(path)
    attempts = Attempts(connection.retry)
    try:
        while file.size < found.size_bytes:
            before = file.size
            try:
                async with contextlib.aclosing(_chunks(connection, found, file.size)) as chunks:
                    async for chunk in chunks:
                        await file.write(new_bytes(chunk, file.size))
                        if progress is not None:
                            progress(file.size, found.size_bytes)
                if file.size < found.size_bytes:
                    raise Unavailable(
                        f"the stream ended at byte {file.size} of {found.size_bytes}", reason="STREAM_ENDED"
                    )
            except ContrafactError as error:
                if file.size > before:
                    attempts.progressed()
                await attempts.failed(error)
        return file.finish(found.sha256, found.size_bytes)
    finally:
        file.discard()


async def _chunks(
    connection: Connection, found: Downloadable, offset: int
) -> AsyncGenerator[DataChunk, None]:
    """Yield the chunks of an artifact or a track from ``offset`` on."""
    if isinstance(found, Artifact):
        stem = stem_pb2.DownloadStemRequest(name=found.name, offset=offset)
        async with contextlib.aclosing(connection.stream(connection.stems.DownloadStem, stem)) as stems:
            async for response in stems:
                yield response.chunk
    else:
        track = track_pb2.DownloadTrackRequest(name=found.name, offset=offset)
        async with contextlib.aclosing(connection.stream(connection.tracks.DownloadTrack, track)) as tracks:
            async for each in tracks:
                yield each.chunk
