"""Conversion as a stream against a real Triton, with a voice that is a gain: timing, cold voices, crashes, order."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress

import numpy as np
import psutil
import pytest
import soxr
from numpy.typing import NDArray

from model_repository.rvc.chunks import Params
from servers.inference.conversion import Converter, VoiceUnavailable
from servers.inference.keeper import ModelKeeper
from servers.inference.triton import Triton
from servers.inference.voices import VoiceFiles, VoiceModel
from servers.local import Stack, running_stack
from servers.media.blocks import Block
from servers.platform.settings import Settings
from servers.storage import keys
from servers.storage.objects import ObjectStore
from tests.conftest import FAKE_MODELS, stack_settings
from tests.inference.fake import our_regions

pytestmark = pytest.mark.timeout(240)
VOICE_RATE, GAIN = 40_000, 0.5
Audio = NDArray[np.float32]


@pytest.fixture(scope="module")
def voice_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Triton and an object store."""
    with running_stack(
        tmp_path_factory.mktemp("voices"),
        only={"triton", "s3"},
        model_repository=FAKE_MODELS,
        environment={"CONTRAFACT_FAKE_RVC_DELAY": "0.05", "CONTRAFACT_FAKE_RVC_LOAD_DELAY": "0.5"},
    ) as running:
        yield running
        # Asked to stop, it takes eight seconds once a model of its has died.
        os.kill(running.processes["triton"].pid, signal.SIGKILL)


@pytest.fixture
def voice_settings(voice_stack: Stack) -> Settings:
    """Settings by which ``voice_stack`` is reached."""
    return stack_settings(voice_stack)


@pytest.fixture
async def triton(voice_settings: Settings) -> AsyncIterator[Triton]:
    """A client."""
    async with Triton(voice_settings) as connected:
        yield connected


@pytest.fixture
async def keeper(triton: Triton, voice_settings: Settings) -> ModelKeeper:
    """The voice model's; it is loaded."""
    watcher = ModelKeeper(triton, "rvc", voice_settings)
    await watcher.wait(check=True)
    return watcher


@pytest.fixture
def converter(triton: Triton, keeper: ModelKeeper, voice_settings: Settings) -> Converter:
    """What is tested."""
    return Converter(triton, keeper, voice_settings)


@pytest.fixture
async def objects(voice_settings: Settings) -> AsyncIterator[ObjectStore]:
    """Where voices are fetched from."""
    store = ObjectStore(voice_settings)
    await store.ensure_bucket()
    yield store
    await store.close()


@pytest.fixture
async def voice(objects: ObjectStore) -> VoiceFiles:
    """A voice that was never used."""
    return await stored(objects)


async def stored(objects: ObjectStore) -> VoiceFiles:
    """A new voice in the store."""
    identity = uuid.uuid4()
    data = json.dumps({"rate": VOICE_RATE, "gain": GAIN, "id": str(identity)}).encode()
    digest = hashlib.sha256(data).hexdigest()
    await objects.put(keys.voice_weights(identity, digest), data)
    return VoiceFiles(identity, digest, "")


def noise(seconds: float, rate: int, seed: int = 0) -> Audio:
    """Noise below 2 kHz, which resampling leaves alone."""
    narrow = np.random.default_rng(seed).standard_normal(round(seconds * 4000)).astype(np.float32) * 0.1
    made: Audio = soxr.resample(narrow, 4000, rate)
    return made


async def blocks(audio: Audio, rate: int, size: int) -> AsyncIterator[Block]:
    """``audio`` in blocks."""
    for start in range(0, len(audio), size):
        yield Block(audio[np.newaxis, start : start + size], rate, start)


async def convert(
    converter: Converter, audio: Audio, voice: VoiceFiles, *, rate: int = 16_000, size: int = 7001, priority: int = 2
) -> Audio:
    """All of it, having checked that the blocks follow each other."""
    parts: list[Audio] = []
    end = 0
    stream = converter.convert(
        blocks(audio, rate, size),
        voice,
        Params(),
        voice_rate=VOICE_RATE,
        rate=rate,
        rms_mix=1.0,
        priority=priority,
        request_id="test",
    )
    async with aclosing(stream):
        async for block in stream:
            assert (block.start, block.sample_rate, block.channels) == (end, rate, 1)
            end += block.frames
            parts.append(block.samples[0])
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def kill_model(stack: Stack) -> None:
    """End the process of the voice model without a word."""
    for child in psutil.Process(stack.processes["triton"].pid).children(recursive=True):
        with suppress(psutil.Error):
            if any(word.endswith("/rvc/1/model.py") for word in child.cmdline()):
                child.kill()


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 96_000])
@pytest.mark.parametrize("seconds", [0.001, 3.999, 4.0, 9.3])
async def test_as_long_as_it_was_and_in_time(
    converter: Converter, voice: VoiceFiles, rate: int, seconds: float
) -> None:
    audio = noise(seconds, rate)
    made = await convert(converter, audio, voice, rate=rate)
    assert made.shape == audio.shape
    inside = slice(rate // 50, len(audio) - rate // 50)  # at the edges, resampling sees silence
    assert not audio[inside].size or np.std(made[inside] - GAIN * audio[inside]) <= 0.02 * np.std(audio[inside]) + 1e-6


async def test_block_sizes_do_not_matter(converter: Converter, voice: VoiceFiles) -> None:
    audio = noise(9.0, 44_100)
    made = [await convert(converter, audio, voice, rate=44_100, size=size) for size in (1_000_000, 44_100, 3001)]
    for other in made[1:]:
        np.testing.assert_allclose(other, made[0], atol=1e-6)


async def test_silence_is_not_asked_of_the_model(converter: Converter, voice: VoiceFiles, triton: Triton) -> None:
    audio = np.zeros(16_000 * 40, np.float32)
    before = await triton.answered("rvc")
    assert not (await convert(converter, audio, voice)).any()
    assert await triton.answered("rvc") == before
    audio[-16_000:] = noise(1.0, 16_000)
    made = await convert(converter, audio, voice)
    assert not made[: 16_000 * 38].any()
    assert made[-12_000:].std() == pytest.approx(GAIN * audio[-12_000:].std(), rel=0.05)


async def test_a_cold_voice_is_waited_for(
    converter: Converter, voice: VoiceFiles, triton: Triton, keeper: ModelKeeper, voice_settings: Settings
) -> None:
    model = VoiceModel(triton, keeper)
    assert str(voice.id) not in {entry["voice"] for entry in (await model.report())["voices"]}
    await convert(converter, noise(1.0, 16_000), voice)
    (entry,) = (entry for entry in (await model.report())["voices"] if entry["voice"] == str(voice.id))
    assert entry["state"] == "WARM"
    assert str(voice.id) not in {entry["voice"] for entry in (await model.evict(voice.id))["voices"]}


async def test_voices_that_cannot_be_had(converter: Converter, voice: VoiceFiles, objects: ObjectStore) -> None:
    audio = noise(1.0, 16_000)
    with pytest.raises(VoiceUnavailable) as missing:
        await convert(converter, audio, VoiceFiles(uuid.uuid4(), voice.weights, ""))
    assert missing.value.reason == "VOICE_NOT_FOUND"
    other = await stored(objects)
    await objects.put(keys.voice_weights(other.id, other.weights), b"something else")
    with pytest.raises(VoiceUnavailable) as wrong:
        await convert(converter, audio, other)
    assert wrong.value.reason == "VOICE_REFUSED"


async def test_a_model_that_dies_under_a_stream_is_not_heard(
    converter: Converter, voice: VoiceFiles, voice_stack: Stack
) -> None:
    audio = noise(30.0, 16_000)
    whole = await convert(converter, audio, voice)
    task = asyncio.create_task(convert(converter, audio, voice))
    await asyncio.sleep(0.2)
    kill_model(voice_stack)
    np.testing.assert_allclose(await task, whole, atol=1e-6)


async def test_cancelling_leaves_nothing(converter: Converter, voice: VoiceFiles, triton: Triton) -> None:
    before = our_regions()
    task = asyncio.create_task(convert(converter, noise(300.0, 16_000), voice))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    answered = await triton.answered("rvc")
    await asyncio.sleep(0.3)
    assert await triton.answered("rvc") <= answered + 2  # what ran, and what woke it
    await triton.__aexit__(None, None, None)
    assert our_regions() <= before


async def test_a_person_waits_for_nobody_in_the_background(converter: Converter, voice: VoiceFiles) -> None:
    audio = noise(80.0, 16_000)
    await convert(converter, audio[:16_000], voice)  # warm
    ended: list[str] = []

    async def run(name: str, heard: Audio, priority: int) -> None:
        await convert(converter, heard, voice, priority=priority)
        ended.append(name)

    background = [asyncio.create_task(run("background", audio, 2)) for _ in range(6)]
    await asyncio.sleep(0.1)
    await asyncio.gather(run("person", audio[: 16_000 * 20], 1), *background)
    assert ended[0] == "person"


async def test_the_pitch_of_a_tone(converter: Converter) -> None:
    seconds = np.arange(48_000) / 16_000
    tone = sum(np.sin(2 * np.pi * 220 * partial * seconds) / partial for partial in range(1, 6))
    f0 = await converter.pitch(0.2 * np.asarray(tone, np.float32), "", priority=1, request_id="test")
    assert len(f0) == 300
    assert np.median(f0[f0 > 0]) == pytest.approx(220, rel=0.01)
