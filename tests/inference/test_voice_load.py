"""A hundred voices through a pool of ten, under load, on a real Triton and object store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from servers.inference.conversion import Converter
from servers.inference.keeper import ModelKeeper
from servers.inference.voices import VoiceFiles, VoiceModel
from servers.local import Stack, running_stack
from servers.storage.objects import ObjectStore
from tests.bench.load import Stream, Watched, disagreements, drive, popular, settled, shelve_gains
from tests.conftest import FAKE_MODELS, stack_settings

pytestmark = pytest.mark.timeout(240)

VOICES, CAPACITY = 100, 10


@dataclass(frozen=True)
class Hall:
    """What the streams go through."""

    triton: Watched
    model: VoiceModel
    converter: Converter
    voices: list[tuple[VoiceFiles, float]]


@pytest.fixture(scope="module")
def voice_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Triton with the fake voice model, and the object store."""
    with running_stack(
        tmp_path_factory.mktemp("voices"),
        only={"s3", "triton"},
        model_repository=FAKE_MODELS,
        environment={"CONTRAFACT_FAKE_RVC_LOAD_DELAY": "0.01", "CONTRAFACT_RVC_CAPACITY": str(CAPACITY)},
    ) as running:
        yield running


@pytest.fixture(scope="module")
async def hall(voice_stack: Stack) -> AsyncIterator[Hall]:
    """A hundred voices."""
    settings = stack_settings(voice_stack)
    objects = ObjectStore(settings)
    voices = await shelve_gains(objects, VOICES)
    async with Watched(settings) as triton:
        keeper = ModelKeeper(triton, settings.voice_model, settings)
        await keeper.wait()
        yield Hall(triton, VoiceModel(triton, keeper), Converter(triton, keeper, settings), voices)
    await objects.close()


@pytest.mark.parametrize("strategy", ["lru", "ttl", "lru+lfu"])
async def test_a_hundred_voices_through_ten_places(hall: Hall, strategy: str) -> None:
    """Everybody is answered, by the right voice, and the pool's counters are what the clients saw."""
    await hall.model.configure({"enabled": True, "strategy": strategy})
    before, seen = await settled(hall.model), len(hall.triton.seen)
    everybody = [Stream(int(voice), 1) for voice in np.random.default_rng(1).permutation(VOICES)]
    streams = popular(VOICES, 40, seed=2, longest=2) + everybody
    assert await drive(hall.converter, hall.model, hall.voices, streams, at_once=12, name=strategy) == []
    requests = list(hall.triton.seen.values())[seen:]
    assert len(requests) == sum(stream.chunks for stream in streams)
    assert all(request.seconds is not None for request in requests)
    after = await settled(hall.model)
    assert disagreements(before, after, len(requests)) == []
    assert len(after["voices"]) == CAPACITY
    # At least those that were not warm had to be loaded, and those who asked first were told to ask again.
    assert after["counters"]["inserted"] - before["counters"]["inserted"] >= VOICES - CAPACITY
    assert any(request.refusals for request in requests)


async def test_a_disabled_pool_answers_all_the_same(hall: Hall) -> None:
    """Each request has its own load, and nothing stays."""
    await hall.model.configure({"enabled": False})
    before, seen = await settled(hall.model), len(hall.triton.seen)
    streams = popular(VOICES, 30, seed=3, longest=2)
    assert await drive(hall.converter, hall.model, hall.voices, streams, at_once=6, name="disabled") == []
    requests = list(hall.triton.seen.values())[seen:]
    after = await settled(hall.model)
    assert disagreements(before, after, len(requests)) == []
    assert after["voices"] == []
    assert after["counters"]["inserted"] - before["counters"]["inserted"] == len(requests)
