"""Sending the files of a voice."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Iterator, Sequence

from contrafact._channel import Connection
from contrafact._chunks import source_chunks
from contrafact._send import ByteProgress, reporter, send_sources
from contrafact._source import Source, Uploadable, open_source
from contrafact.v1 import voice_pb2
from contrafact.v1.voice_pb2_grpc import VoiceServiceStub

Pitches = voice_pb2.PitchRange | Sequence[float]
File = tuple[voice_pb2.VoiceFile.ValueType, Source]


def import_spec(
    display_name: str,
    language: str,
    tags: Iterable[str],
    licence: str,
    pitch_range: Pitches | None,
    request_id: str | None,
) -> voice_pb2.VoiceImportSpec:
    """Return what is said about a voice that is to be imported."""
    return voice_pb2.VoiceImportSpec(
        request_id=request_id or str(uuid.uuid4()),
        display_name=display_name,
        language=language,
        tags=tags,
        licence=licence,
        pitch_range=None if pitch_range is None else pitches(pitch_range),
    )


def pitches(given: Pitches) -> voice_pb2.PitchRange:
    """Return the register of (low, median, high) in Hz; else ValueError."""
    if isinstance(given, voice_pb2.PitchRange):
        return given
    if len(given) != 3 or not 0 < given[0] <= given[1] <= given[2]:
        raise ValueError("a pitch range is its low, median and high pitch in Hz")
    low, median, high = given
    return voice_pb2.PitchRange(low_hz=low, median_hz=median, high_hz=high)


async def import_files(
    connection: Connection,
    spec: voice_pb2.VoiceImportSpec,
    weights: Uploadable,
    index: Uploadable | None,
    sample: Uploadable | None,
    progress: ByteProgress | None,
) -> voice_pb2.Voice:
    """Import a voice from files; see :meth:`contrafact.Client.import_voice`."""
    given = {
        voice_pb2.VOICE_FILE_WEIGHTS: weights,
        voice_pb2.VOICE_FILE_INDEX: index,
        voice_pb2.VOICE_FILE_SAMPLE: sample,
    }
    with contextlib.ExitStack() as opened:
        files: dict[voice_pb2.VoiceFile.ValueType, Source] = {}
        for kind, what in given.items():
            if what is not None:
                files[kind] = source = open_source(what, voice_pb2.VoiceFile.Name(kind))
                opened.callback(source.close)
                await source.measure()
                if source.size == 0:
                    word = voice_pb2.VoiceFile.Name(kind).removeprefix("VOICE_FILE_").lower()
                    raise ValueError(f"the {word} of the voice is empty")
        spec.weights_sha256 = files[voice_pb2.VOICE_FILE_WEIGHTS].sha256
        if index is not None:
            spec.index_sha256 = files[voice_pb2.VOICE_FILE_INDEX].sha256
        return await send_import(connection, spec, list(files.items()), progress)


async def send_import(
    connection: Connection,
    spec: voice_pb2.VoiceImportSpec,
    files: Sequence[File] = (),
    progress: ByteProgress | None = None,
) -> voice_pb2.Voice:
    """Send specification, files and end; all again, under the same id, whenever the stream breaks."""
    sources = [source for _, source in files]
    sizes = [source.size for source in sources]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    report = reporter(progress)
    response: voice_pb2.ImportVoiceResponse = await send_sources(
        connection,
        lambda: VoiceServiceStub(connection.blocking_channel).ImportVoice,
        lambda: _messages(spec, files, total, report),
        sources,
    )
    return response.voice


def _messages(
    spec: voice_pb2.VoiceImportSpec, files: Sequence[File], total: int | None, progress: ByteProgress
) -> Iterator[voice_pb2.ImportVoiceRequest]:
    """Yield the specification, the files one after the other, and the end."""
    yield voice_pb2.ImportVoiceRequest(spec=spec)
    done = 0
    for kind, source in files:
        for chunk in source_chunks(source):
            progress(done, total)
            yield voice_pb2.ImportVoiceRequest(file=voice_pb2.VoiceFileChunk(file=kind, chunk=chunk))
            done += len(chunk.data)
    progress(done, total)
    yield voice_pb2.ImportVoiceRequest(end=voice_pb2.VoiceImportEnd())
