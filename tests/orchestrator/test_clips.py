"""Embeddings of clips, by a real analyzer."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import google_crc32c
import grpc
import numpy as np
import pytest
from contrafact.v1 import analysis_pb2
from contrafact.v1.audio_pb2 import DataChunk
from contrafact.v1.search_pb2 import ClipEnd, ClipSpec, EmbedClipRequest

from servers.media.synthetic import write_song
from servers.orchestrator.engines.analyzer import Analyzer
from servers.orchestrator.search.clips import Clips
from servers.platform.errors import ApiError
from servers.platform.settings import Settings
from tests.engine_process import AnalyzerProcess
from tests.media.media_builders import wav_bytes

Code = grpc.StatusCode


@pytest.fixture(scope="module")
async def analyzer(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AnalyzerProcess]:
    process = AnalyzerProcess(tmp_path_factory.mktemp("analyzer"))
    await process.child.start()
    yield process
    await process.child.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where clips are put while they are listened to."""
    made = tmp_path / "clips"
    made.mkdir()
    return made


@pytest.fixture
async def clips(analyzer: AnalyzerProcess, folder: Path) -> AsyncIterator[Clips]:
    settings = analyzer.settings.model_copy(
        update={"temporary_folder": folder, "max_clip_bytes": 3_000_000, "upload_idle_seconds": 3.0}
    )
    async with Analyzer(settings) as client:
        yield Clips(settings, client)
    assert not list(folder.iterdir())


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Twelve seconds of music as FLAC."""
    path = tmp_path_factory.mktemp("music") / "song.flac"
    write_song(path, seconds=12.0)
    return path.read_bytes()


def messages(data: bytes, piece: int = 300_000, **spec: float) -> list[EmbedClipRequest]:
    """A right stream."""
    chunks = [
        DataChunk(offset=at, data=data[at : at + piece], crc32c=google_crc32c.value(data[at : at + piece]))
        for at in range(0, len(data), piece)
    ]
    return [
        EmbedClipRequest(spec=ClipSpec(**spec)),
        *(EmbedClipRequest(chunk=chunk) for chunk in chunks),
        EmbedClipRequest(end=ClipEnd(size_bytes=len(data))),
    ]


async def stream(requests: list[EmbedClipRequest], pause: float = 0) -> AsyncIterator[EmbedClipRequest]:
    for request in requests:
        yield request
    await asyncio.sleep(pause)


async def refused(clips: Clips, requests: list[EmbedClipRequest], pause: float = 0) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(ApiError) as refusal:
        await clips.embed(stream(requests, pause))
    return refusal.value.code, refusal.value.reason


def likeness(one: analysis_pb2.Embedding, other: analysis_pb2.Embedding) -> float:
    return float(np.dot(one.values, other.values))


async def test_what_a_clip_sounds_like(clips: Clips, music: bytes) -> None:
    whole = await clips.embed(stream(messages(music)))
    assert whole.model == Settings().embedding_model
    assert len(whole.values) == 512
    assert np.linalg.norm(whole.values) == pytest.approx(1, abs=1e-5)
    assert await clips.embed(stream(messages(music, piece=50_000))) == whole
    part = await clips.embed(stream(messages(music, start_seconds=2, seconds=5)))
    assert 0.5 < likeness(whole, part) < 0.99999
    beyond = await clips.embed(stream(messages(music, start_seconds=2, seconds=500)))
    assert likeness(beyond, await clips.embed(stream(messages(music, start_seconds=2)))) == pytest.approx(1)


async def test_silence_sounds_like_nothing(clips: Clips) -> None:
    silence = wav_bytes(bytes(2 * 44_100 * 5))
    assert await refused(clips, messages(silence)) == (Code.INVALID_ARGUMENT, "NO_EMBEDDING")


async def test_a_sample_that_is_none(clips: Clips) -> None:
    samples = np.full(44_100, 0.1, np.float32)
    samples[1000] = 2e6
    clip = wav_bytes(samples.tobytes(), tag=3, bits=32)
    assert await refused(clips, messages(clip)) == (Code.INVALID_ARGUMENT, "INVALID_SAMPLES")


async def test_a_beginning_beyond_the_end(clips: Clips, music: bytes) -> None:
    for start in (12.5, 1e300):
        assert await refused(clips, messages(music, start_seconds=start)) == (Code.INVALID_ARGUMENT, "STRETCH_OUTSIDE")


async def test_what_is_no_audio(clips: Clips, music: bytes) -> None:
    code, reason = await refused(clips, messages(b"no audio at all" * 1000))
    assert (code, reason) == (Code.INVALID_ARGUMENT, "NOT_AUDIO")
    code, _ = await refused(clips, messages(music[: len(music) // 2]))
    assert code is Code.INVALID_ARGUMENT


async def test_streams_that_are_not_right(clips: Clips, music: bytes) -> None:
    spec, *chunks, end = messages(music, piece=len(music) // 3)
    damaged = EmbedClipRequest()
    damaged.CopyFrom(chunks[0])
    damaged.chunk.crc32c ^= 1
    for requests, code, reason in (
        ([], Code.INVALID_ARGUMENT, "SPEC_MISSING"),
        ([*chunks, end], Code.INVALID_ARGUMENT, "SPEC_MISSING"),
        ([spec, spec], Code.INVALID_ARGUMENT, "UNEXPECTED_SPEC"),
        ([spec, *chunks], Code.INVALID_ARGUMENT, "END_MISSING"),
        ([spec, chunks[1]], Code.INVALID_ARGUMENT, "OFFSET_MISMATCH"),
        ([spec, chunks[0], chunks[0]], Code.INVALID_ARGUMENT, "OFFSET_MISMATCH"),
        ([spec, chunks[0], end], Code.INVALID_ARGUMENT, "SIZE_MISMATCH"),
        ([spec, damaged, *chunks[1:], end], Code.DATA_LOSS, "CHUNK_CHECKSUM_MISMATCH"),
        (messages(bytes(3_000_001)), Code.INVALID_ARGUMENT, "CLIP_TOO_LARGE"),
    ):
        assert await refused(clips, requests) == (code, reason)


async def test_a_client_that_falls_silent(clips: Clips, music: bytes) -> None:
    assert await refused(clips, messages(music)[:-1], pause=30) == (Code.DEADLINE_EXCEEDED, "UPLOAD_TOO_SLOW")


async def test_more_clips_than_there_is_room_for(clips: Clips, music: bytes) -> None:
    spec = messages(music)[:1]
    waiting = [asyncio.create_task(clips.embed(stream(spec, pause=30))) for _ in range(16)]
    await asyncio.sleep(0)
    assert await refused(clips, messages(music)) == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_CLIPS")
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert await clips.embed(stream(messages(music)))  # there is room again


async def test_an_analyzer_that_is_away(analyzer: AnalyzerProcess, folder: Path, music: bytes) -> None:
    away = analyzer.settings.model_copy(update={"temporary_folder": folder, "analyzer_url": f"unix:/{uuid.uuid4()}"})
    async with Analyzer(away, idle_seconds=1.0) as client:
        assert await refused(Clips(away, client), messages(music)) == (Code.UNAVAILABLE, "ANALYZER_UNAVAILABLE")
    assert not list(folder.iterdir())
