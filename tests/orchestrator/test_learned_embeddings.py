"""Analyses and searches with a learned model: a small network on a real Triton, through the whole stack."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from contrafact import Client, FailedPrecondition, InvalidArgument
from contrafact.v1 import analysis_pb2, track_pb2

from servers.analyzer.version import EMBEDDINGS
from servers.inference.embedding import Embedder
from servers.inference.keeper import ModelKeeper
from servers.inference.models import EMBEDDER
from servers.inference.triton import Triton
from servers.local import Stack, running_stack
from servers.media.synthetic import write_song
from servers.orchestrator.engines.embedder import LearnedEmbeddings
from servers.orchestrator.jobs.events import connect as connect_redis
from servers.orchestrator.search.clips import Clips
from servers.platform.settings import Settings
from servers.storage.database import connect
from tests.conftest import FAKE_MODELS, stack_settings
from tests.inference.networks import DIMENSIONS, network_in_cache
from tests.orchestrator.test_clips import Code, messages, refused
from tests.orchestrator.test_separation import noise, read, write

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

MODELS = Path(__file__).resolve().parents[2] / "model_repository"
MODEL = "tiny-1"


@pytest.fixture(scope="module")
def network_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The network in the cache of weights."""
    with network_in_cache(tmp_path_factory.mktemp("weights")) as file:
        yield file


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, network_file: Path) -> Iterator[Stack]:
    """The whole stack, which embeds by the network."""
    models = tmp_path_factory.mktemp("models")
    for folder in (FAKE_MODELS / "htdemucs", FAKE_MODELS / "rvc", MODELS / "embedder"):
        (models / folder.name).symlink_to(folder)
    with running_stack(
        tmp_path_factory.mktemp("learned"),
        model_repository=models,
        weights=False,
        triton_threads=1,
        environment={"CONTRAFACT_EMBEDDING_MODEL": MODEL, "CONTRAFACT_MODEL_LOAD_TIMEOUT_SECONDS": "20"},
    ) as running:
        yield running


@pytest.fixture(scope="module")
def settings(stack: Stack) -> Settings:
    """Settings of ``stack``."""
    return stack_settings(stack).model_copy(update={"embedding_model": MODEL, "model_load_timeout_seconds": 20.0})


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[Client]:
    """A client of ``stack``."""
    async with Client(stack.api_address) as connected:
        yield connected


@pytest.fixture(scope="module")
async def songs(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Music, a copy of it in noise, and something else; the model is loaded."""
    await load(settings)
    folder = tmp_path_factory.mktemp("songs")
    write_song(folder / "music.wav", seconds=12.0)
    music, rate = read(folder / "music.wav")
    copy = 0.5 * music + noise(music.shape[1], music.shape[0], level=0.05)
    time = np.arange(music.shape[1]) / rate
    hum = np.stack([np.sin(2 * np.pi * 220 * time) + np.sin(2 * np.pi * 331 * time)] * 2) / 4
    write(folder / "copy.wav", copy, rate)
    write(folder / "hum.wav", hum.astype(np.float32), rate)
    return {path.stem: path for path in folder.iterdir()}


async def load(settings: Settings) -> None:
    """Load the model, however long that takes here; the stack is impatient, for the sake of one test."""
    async with Triton(settings) as triton:
        await triton.load(EMBEDDER, 120)


async def analyzed(client: Client, path: Path) -> tuple[track_pb2.Track, analysis_pb2.Features]:
    """A track of that file, and what is known of it."""
    track = await client.upload(path)
    return track, (await client.analyze(track, full=True)).features


async def test_search_finds_the_copy(client: Client, songs: dict[str, Path]) -> None:
    known = {name: await analyzed(client, path) for name, path in songs.items()}
    for _, features in known.values():
        assert features.embedding.model == MODEL
        assert len(features.embedding.values) == DIMENSIONS
        assert np.linalg.norm(features.embedding.values) == pytest.approx(1, abs=1e-5)
        assert features.HasField("loudness")
        assert features.HasField("waveform")
        assert features.HasField("quality")
    hits = await client.search(known["music"][0])
    assert [hit.track.name for hit in hits] == [known["copy"][0].name, known["hum"][0].name]
    assert hits[0].similarity > 0.95 > hits[1].similarity + 0.2
    assert hits[0].HasField("best_start_seconds")  # of its segments


async def test_a_clip_finds_what_it_is_from(client: Client, songs: dict[str, Path]) -> None:
    track, features = await analyzed(client, songs["music"])
    whole = await client.embed_clip(songs["music"])
    assert whole == features.embedding
    part = await client.embed_clip(songs["music"], start=3.0, seconds=4.0)
    assert part.model == MODEL
    assert part != whole
    for clip in (whole, part):
        assert (await client.search(clip))[0].track.sha256 == track.sha256


async def test_what_cannot_be_embedded(client: Client, tmp_path: Path) -> None:
    silence = write(tmp_path / "silence.wav", np.zeros((2, 100_000), np.float32), 44_100)
    short = write(tmp_path / "short.wav", noise(40_000, 1), 44_100)
    for path, reason in ((silence, "SILENT"), (short, "TOO_SHORT")):
        _, features = await analyzed(client, path)
        told = {unknown.feature: unknown.reason for unknown in features.unknown}
        assert told[analysis_pb2.FEATURE_EMBEDDING] == reason
        with pytest.raises(InvalidArgument) as refusal:
            await client.embed_clip(path)
        assert refusal.value.reason == "NO_EMBEDDING"


async def another_models(settings: Settings, track: track_pb2.Track) -> None:
    """Make it so that the default model has embedded a track, long ago."""
    pool, redis = await connect(settings), connect_redis(settings)
    summary = await pool.fetchval("SELECT summary FROM analyses WHERE sha256 = $1", track.sha256)
    features = analysis_pb2.Features.FromString(summary)
    features.embedding.model = EMBEDDINGS
    track_id = UUID(track.name.split("/")[1])
    await pool.execute("UPDATE analyses SET summary = $2 WHERE sha256 = $1", track.sha256, features.SerializeToString())
    await pool.execute("UPDATE sounds SET model = $2 WHERE track_id = $1", track_id, EMBEDDINGS)
    await pool.execute("UPDATE jobs SET ended_at = now() - interval '1 day' WHERE track_id = $1", track_id)
    await redis.flushall()
    await redis.aclose()
    await pool.close()


async def test_another_models_embedding_is_made_anew(
    client: Client, settings: Settings, songs: dict[str, Path]
) -> None:
    track, features = await analyzed(client, songs["hum"])

    async def ask() -> analysis_pb2.GetAnalysisResponse:
        request = analysis_pb2.GetAnalysisRequest(track=track.name)
        answer: Any = await client._connection.unary(client._connection.analyses.GetAnalysis, request)
        return answer

    await another_models(settings, track)
    old = await ask()
    assert (old.analysis.features.embedding.model, old.HasField("job")) == (EMBEDDINGS, False)
    async with asyncio.timeout(100):
        while (renewed := await ask()).analysis.features.embedding.model != MODEL:
            await asyncio.sleep(0.2)
    assert renewed.analysis.features.embedding == features.embedding

    await another_models(settings, track)
    scans = [scan async for scan in client.scan([track])]
    assert (scans[-1].analyzed, scans[-1].existing) == (1, 0)
    scans = [scan async for scan in client.scan([track])]
    assert (scans[-1].analyzed, scans[-1].existing) == (0, 1)


async def test_a_model_that_cannot_be_loaded(
    client: Client, settings: Settings, network_file: Path, songs: dict[str, Path], tmp_path: Path
) -> None:
    right = network_file.read_bytes()
    samples, rate = read(songs["music"])
    track = await client.upload(write(tmp_path / "new.wav", samples * np.float32(0.7), rate))
    network_file.write_bytes(b"nothing of the kind")
    try:
        async with Triton(settings) as triton:
            await triton.unload(EMBEDDER, 30)
            with pytest.raises(FailedPrecondition):
                await client.analyze(track)
            (job,) = [job async for job in client.jobs() if job.analysis.track == track.name]
            assert (job.error.reason, job.error.retryable) == ("MODEL_UNAVAILABLE", True)
            embedder = Embedder(triton, ModelKeeper(triton, EMBEDDER, settings), settings)
            clips = Clips(settings, LearnedEmbeddings(embedder, patient=False))
            assert await refused(clips, messages(songs["music"].read_bytes())) == (
                Code.UNAVAILABLE,
                "MODEL_UNAVAILABLE",
            )
    finally:
        network_file.write_bytes(right)
    await load(settings)
    assert (await client.analyze(track)).features.embedding.model == MODEL
