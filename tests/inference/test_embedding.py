"""Embeddings by a small network on a real Triton."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from servers.inference.asking import InferenceRefused
from servers.inference.embedding import Embedder
from servers.inference.keeper import ModelKeeper, ModelUnavailable
from servers.inference.models import EMBEDDER
from servers.inference.triton import Triton
from servers.local import Stack, running_stack
from servers.media.blocks import Block
from servers.platform.settings import Settings
from tests.conftest import stack_settings
from tests.inference.fake import changed, our_regions
from tests.inference.networks import DIMENSIONS, HOP, RATE, WINDOW, expected, network_in_cache

Samples = np.ndarray[Any, np.dtype[np.float32]]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def network_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A network in the cache of weights."""
    with network_in_cache(tmp_path_factory.mktemp("weights")) as file:
        yield file


@pytest.fixture(scope="module")
def triton_stack(tmp_path_factory: pytest.TempPathFactory, network_file: Path) -> Iterator[Stack]:
    """Triton alone, with the real model."""
    folder = tmp_path_factory.mktemp("embedder")
    with running_stack(folder, only={"triton"}, model_repository=ROOT / "model_repository", triton_threads=1) as stack:
        yield stack
        os.kill(stack.processes["triton"].pid, signal.SIGKILL)  # it takes eight seconds once a model of its has died


@pytest.fixture(scope="module")
def settings(triton_stack: Stack) -> Settings:
    return changed(stack_settings(triton_stack), embedding_model="tiny-1", model_load_timeout_seconds=60.0)


@pytest.fixture
async def triton(settings: Settings) -> AsyncIterator[Triton]:
    async with Triton(settings) as connected:
        yield connected


@pytest.fixture
def embedder(triton: Triton, settings: Settings) -> Embedder:
    return Embedder(triton, ModelKeeper(triton, EMBEDDER, settings), settings)


def noise(seconds: float, rate: int = RATE) -> Samples:
    made = np.random.default_rng(4).standard_normal(round(seconds * rate)).cumsum()
    return (made / np.abs(made).max()).astype(np.float32)


async def blocks(samples: Samples, size: int, rate: int = RATE) -> AsyncIterator[Block]:
    for start in range(0, samples.shape[1], size):
        yield Block(samples[:, start : start + size], rate, start)


async def embed(embedder: Embedder, samples: Samples, size: int = 65_536, *, rate: int = RATE) -> Samples:
    """Vectors of float32 [channels, n]."""
    network = await embedder.network(priority=1, request_id="test")
    stream = embedder.embed(network, blocks(samples, size, rate), priority=1, request_id="test")
    async with aclosing(stream) as parts:
        made = [part async for part in parts]
    assert made[-1].seconds == pytest.approx(samples.shape[1] / rate, abs=1e-3)
    return np.concatenate([part.vectors for part in made])


def by_numpy(samples: Samples) -> Samples:
    """The same, of mono float32 [n]."""
    windows = -(-(len(samples) - WINDOW) // HOP) + 1
    padded = np.pad(samples, (0, WINDOW + (windows - 1) * HOP - len(samples)))
    vectors = expected(np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP])
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


async def test_what_the_model_says_of_itself(embedder: Embedder) -> None:
    network = await embedder.network(priority=1, request_id="test")
    assert (network.name, network.sample_rate, network.window, network.hop) == ("tiny-1", RATE, WINDOW, HOP)
    assert network.dimensions == DIMENSIONS


async def test_vectors_of_all_windows_however_the_stream_was_cut(embedder: Embedder) -> None:
    samples = noise(20.5)
    whole = await embed(embedder, samples[None])
    np.testing.assert_allclose(whole, by_numpy(samples), atol=1e-4)
    for size in (997, 16_000, 70_001):
        np.testing.assert_array_equal(await embed(embedder, samples[None], size), whole)


async def test_shared_memory_and_inline_give_the_same(triton: Triton, settings: Settings) -> None:
    samples, made = noise(20.5)[None], []
    for sharing in ("on", "off"):
        async with Triton(changed(settings, shared_memory=sharing)) as other:
            made.append(await embed(Embedder(other, ModelKeeper(other, EMBEDDER, settings), settings), samples))
            assert bool(our_regions()) == (sharing == "on")
    np.testing.assert_array_equal(made[0], made[1])
    assert not our_regions()


async def test_the_mean_of_channels_at_the_models_rate(embedder: Embedder) -> None:
    both = np.stack([noise(6), noise(6)[::-1]])
    np.testing.assert_allclose(await embed(embedder, both), by_numpy(both.mean(axis=0)), atol=1e-4)
    time = np.arange(6 * 48_000) / 48_000
    tone = sum(np.sin(2 * np.pi * frequency * time) for frequency in (200, 500, 1200, 2500)).astype(np.float32) / 4
    # Every sixth sample is the tone at the model's rate, but for where it is cut off.
    similar = (await embed(embedder, tone[None], rate=48_000))[1:-1] * by_numpy(tone[::6])[1:-1]
    assert similar.sum(axis=1).min() > 0.999


async def test_silence_is_not_asked_for(embedder: Embedder, triton: Triton) -> None:
    await embed(embedder, noise(2)[None])
    before = await triton.answered(EMBEDDER)
    vectors = await embed(embedder, np.concatenate([noise(3), np.zeros(30 * RATE, np.float32)])[None])
    assert await triton.answered(EMBEDDER) - before == 2  # who it is, and the windows with sound
    assert vectors[:3].any(axis=1).all()
    assert not vectors[3:].any()


async def test_a_network_that_is_not_the_one_configured(triton: Triton, settings: Settings) -> None:
    other = changed(settings, embedding_model="clap-2")
    with pytest.raises(ModelUnavailable, match="tiny-1, and clap-2 is configured"):
        await Embedder(triton, ModelKeeper(triton, EMBEDDER, other), other).network(priority=1, request_id="test")


async def test_windows_of_another_length_are_refused(embedder: Embedder) -> None:
    network = await embedder.network(priority=1, request_id="test")
    with pytest.raises(InferenceRefused, match=f"windows of {WINDOW} samples; got"):
        await embedder._ask(np.ones((2, network.window - 1), np.float32), None, 1, "test")
    with pytest.raises(InferenceRefused, match="1 to 8 windows"):
        await embedder._ask(np.ones((9, network.window), np.float32), None, 1, "test")


@pytest.mark.slow
async def test_a_model_that_dies_is_loaded_again(embedder: Embedder, triton_stack: Stack) -> None:
    samples = noise(40)
    network = await embedder.network(priority=2, request_id="test")
    made: list[Samples] = []
    async with aclosing(embedder.embed(network, blocks(samples[None], 8000), priority=2, request_id="test")) as parts:
        async for part in parts:
            if not made:
                for pid in stub_pids(triton_stack):
                    os.kill(pid, signal.SIGKILL)
            made.append(part.vectors)
    np.testing.assert_allclose(np.concatenate(made), by_numpy(samples), atol=1e-4)


@pytest.mark.slow
async def test_weights_that_are_damaged(
    triton: Triton, settings: Settings, network_file: Path, embedder: Embedder
) -> None:
    right = network_file.read_bytes()
    if await triton.is_ready(EMBEDDER):
        await triton.unload(EMBEDDER, 30)
    network_file.write_bytes(right[:-1] + b"?")
    try:
        with pytest.raises(ModelUnavailable, match="damaged"):
            await embedder.network(priority=1, request_id="test", patient=False)
        waiting = asyncio.create_task(embedder.network(priority=1, request_id="test"))
        await asyncio.sleep(0.5)
        assert not waiting.done()  # it is patient
    finally:
        network_file.write_bytes(right)
    assert (await waiting).name == "tiny-1"


def stub_pids(stack: Stack) -> list[int]:
    """The processes of the model."""
    found = []
    for child in psutil.Process(stack.processes["triton"].pid).children(recursive=True):
        with suppress(psutil.Error):
            if any(word.endswith("/embedder/1/model.py") for word in child.cmdline()):
                found.append(child.pid)
    assert found
    return found
