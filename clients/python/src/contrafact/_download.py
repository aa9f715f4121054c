"""Downloads that go on where they broke off."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contrafact import _words
from contrafact._channel import Connection
from contrafact._chunks import new_bytes
from contrafact._errors import ContrafactError, FailedPrecondition, Unavailable
from contrafact._files import PartFile
from contrafact._retry import Attempts
from contrafact._send import ByteProgress
from contrafact._source import base_name
from contrafact.v1 import cover_pb2, mix_pb2, stem_pb2, style_pb2, track_pb2, voice_pb2
from contrafact.v1.artifact_pb2 import Artifact

Downloadable = Artifact | track_pb2.Track | cover_pb2.Cover | mix_pb2.Mix
Opener = Callable[[int], tuple[Any, Any]]
"""Given an offset, the method that streams chunks from there on, and its request."""


async def find(connection: Connection, what: str | Downloadable) -> Artifact | track_pb2.Track | mix_pb2.Mix:
    """Return the artifact, the track or the mix of a resource name."""
    if isinstance(what, cover_pb2.Cover):
        return what.artifact
    if not isinstance(what, str):
        return what
    if what.startswith("mixes/"):
        mix = mix_pb2.GetMixRequest(name=what)
        return (await connection.unary(connection.mixes.GetMix, mix)).mix
    if what.startswith("styles/"):
        style = style_pb2.GetStyleRequest(name=what)
        return _preview((await connection.unary(connection.styles.GetStyle, style)).style)
    if what.startswith("covers/"):
        cover = cover_pb2.GetCoverRequest(name=what)
        return (await connection.unary(connection.covers.GetCover, cover)).cover.artifact
    if "/stems/" in what:
        return (await connection.unary(connection.stems.GetStem, stem_pb2.GetStemRequest(name=what))).stem
    return (await connection.unary(connection.tracks.GetTrack, track_pb2.GetTrackRequest(name=what))).track


def _artifact(mix: mix_pb2.Mix) -> Artifact:
    if not mix.HasField("artifact"):
        raise FailedPrecondition("the mix was not rendered yet", reason="MIX_NOT_READY")
    return mix.artifact


def _preview(style: style_pb2.Style) -> Artifact:
    if not style.HasField("preview"):
        raise FailedPrecondition("the grains of the style were not cut yet", reason="STYLE_NOT_READY")
    return style.preview


async def download(
    connection: Connection,
    what: str | Downloadable,
    place: str | os.PathLike[str],
    progress: ByteProgress | None = None,
) -> Path:
    """Download an artifact or a track; see :meth:`contrafact.Client.download`."""
    found, revision = await find(connection, what), 0
    if isinstance(found, mix_pb2.Mix):
        revision, found = found.artifact_revision, _artifact(found)
    name = base_name(found.name if isinstance(found, Artifact) else found.display_name)
    if found.name.startswith(("covers/", "mixes/", "styles/")) and isinstance(found, Artifact):
        name += f".{_words.extension(found.format)}"
    file = PartFile(_path(place, name))
    with contextlib.closing(file):
        await _fetch(connection, _opener(connection, found.name, revision), file, found.size_bytes, progress)
        return file.finish(found.sha256, found.size_bytes)


async def download_sample(
    connection: Connection,
    voice: voice_pb2.Voice,
    place: str | os.PathLike[str],
    progress: ByteProgress | None = None,
) -> Path:
    """Download the sample of a voice; see :meth:`contrafact.Client.download_voice_sample`."""

    def opener(offset: int) -> tuple[Any, Any]:
        request = voice_pb2.DownloadVoiceSampleRequest(name=voice.name, offset=offset)
        return connection.voices.DownloadVoiceSample, request

    container = base_name(voice.sample.container) or "bin"
    file = PartFile(_path(place, f"{base_name(voice.display_name)}.{container}"))
    with contextlib.closing(file):
        await _fetch(connection, opener, file, None, progress)
        return file.keep()


def _path(place: str | os.PathLike[str], name: str) -> Path:
    """Return where a file goes: the place, or a file of that name in it if it is a folder."""
    path, into_folder = Path(place), os.fspath(place).endswith(("/", os.sep))
    if into_folder or path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        return path / (name.strip(". ") or "download")
    return path


def _opener(connection: Connection, name: str, revision: int) -> Opener:
    """Return how a track, a stem, a cover, a mix (of that revision) or the preview of a style is streamed."""

    def opener(offset: int) -> tuple[Any, Any]:
        if name.startswith("mixes/"):
            mix = mix_pb2.DownloadMixRequest(name=name, offset=offset, revision=revision)
            return connection.mixes.DownloadMix, mix
        if name.startswith("styles/"):
            preview = style_pb2.DownloadStylePreviewRequest(name=name, offset=offset)
            return connection.styles.DownloadStylePreview, preview
        if name.startswith("covers/"):
            cover = cover_pb2.DownloadCoverRequest(name=name, offset=offset)
            return connection.covers.DownloadCover, cover
        if "/stems/" in name:
            return connection.stems.DownloadStem, stem_pb2.DownloadStemRequest(name=name, offset=offset)
        return connection.tracks.DownloadTrack, track_pb2.DownloadTrackRequest(name=name, offset=offset)

    return opener


async def _fetch(
    connection: Connection, opener: Opener, file: PartFile, size: int | None, progress: ByteProgress | None
) -> None:
    """Write all chunks to a file; without a known size the end of the stream is the end of the bytes."""
    attempts = Attempts(connection)
    while size is None or file.size < size:
        before = file.size
        try:
            async with contextlib.aclosing(connection.stream(*opener(file.size))) as responses:
                async for response in responses:
                    await file.write(new_bytes(response.chunk, file.size))
                    if progress is not None:
                        progress(file.size, size)
            if size is None:
                return
            if file.size < size:
                raise Unavailable(f"the stream ended at byte {file.size} of {size}", reason="STREAM_ENDED")
        except ContrafactError as error:
            if file.size > before:
                attempts.progressed()
            await attempts.failed(error)
