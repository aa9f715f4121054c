"""Many questions at once to a real Triton: how many are under way, who is next, what waiting costs."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY

from servers.inference.asking import Asker
from servers.inference.keeper import ModelKeeper
from servers.inference.triton import Question, Triton
from servers.platform.settings import Settings
from tests.inference.fake import DELAY, OUTPUT, OUTPUT_BYTES, ComputeLog, changed, our_regions, window

pytestmark = pytest.mark.timeout(240)


def asker(triton: Triton, settings: Settings) -> Asker:
    """One that asks the fake model."""
    return Asker(triton, ModelKeeper(triton, "htdemucs", settings), settings)


async def ask(asker: Asker, value: float, priority: int) -> None:
    """One segment, all of it ``value``."""
    await asker.ask(
        Question("htdemucs", "mix", window(value), "stems", OUTPUT),
        lambda answer: None,
        output_bytes=OUTPUT_BYTES,
        priority=priority,
        request_id="test",
    )


def gauge(name: str, priority: int) -> float | None:
    """Questions to the fake model that are under way ("held") or wait ("waiting")."""
    return REGISTRY.get_sample_value(f"contrafact_slots_{name}", {"resource": "htdemucs", "priority": str(priority)})


@pytest.mark.parametrize("limit", [1, 3])
async def test_a_person_waits_for_one_segment_however_many_are_scanned(
    triton: Triton, triton_settings: Settings, compute_log: ComputeLog, limit: int
) -> None:
    asking = asker(triton, changed(triton_settings, model_requests_in_flight=limit))
    compute_log.begin()
    scan = [asyncio.create_task(ask(asking, 100 + number, 2)) for number in range(8)]
    await compute_log.reaches(2)
    async with compute_log.held():
        assert gauge("held", 2) == max(1, limit - 1)
        began = len(compute_log.computed())
        person = asyncio.create_task(ask(asking, 1, 1))
    await person
    assert compute_log.computed().index(1) <= began + 1  # one was running, one may have been on its way
    await asyncio.gather(*scan)
    assert gauge("held", 2) == gauge("waiting", 2) == 0


async def test_waiting_for_a_turn_counts_against_no_timeout(
    triton: Triton, triton_settings: Settings, compute_log: ComputeLog
) -> None:
    settings = changed(triton_settings, model_requests_in_flight=1, segment_timeout_seconds=6 * DELAY)
    asking = asker(triton, settings)
    compute_log.begin()
    await asyncio.gather(*(ask(asking, number, 2) for number in range(12)))
    assert sorted(compute_log.computed()) == list(range(12))  # none was given up and asked again


async def test_those_who_wait_take_no_shared_memory(triton_settings: Settings, compute_log: ComputeLog) -> None:
    before = our_regions()
    async with Triton(triton_settings) as triton:
        await triton.load("htdemucs", 60)
        asking = asker(triton, changed(triton_settings, model_requests_in_flight=2))
        compute_log.begin()
        tasks = [asyncio.create_task(ask(asking, number, 1)) for number in range(9)]
        await compute_log.reaches(3)
        async with compute_log.held():
            assert len(our_regions() - before) == 2
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert gauge("held", 1) == gauge("waiting", 1) == 0
        await ask(asking, 9, 2)
        assert len(compute_log.computed()) <= 5  # what waited was never asked
