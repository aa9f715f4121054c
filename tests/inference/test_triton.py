"""The client against a real Triton: regions of shared memory, answers, order, cancellation."""

from __future__ import annotations

import asyncio
from typing import Literal

import numpy as np
import pytest

from servers.inference.keeper import ModelKeeper
from servers.inference.segments import Samples
from servers.inference.separation import Separator
from servers.inference.triton import Question, Region, Triton, TritonError
from servers.platform.settings import Settings
from tests.inference.fake import (
    ARRIVED,
    GAINS,
    INPUT_BYTES,
    OUTPUT,
    OUTPUT_BYTES,
    ComputeLog,
    changed,
    eventually,
    our_regions,
    ramp,
    separate,
    window,
)

pytestmark = pytest.mark.timeout(240)


async def infer(triton: Triton, samples: Samples, priority: int = 2, model: str = "htdemucs") -> Samples:
    """The model's answer, by whichever way ``triton`` passes tensors."""
    async with triton.region(INPUT_BYTES, OUTPUT_BYTES) as region:
        if region is not None:
            region.array(0, samples.shape)[:] = samples
        question = Question(model, "mix", samples, "stems", OUTPUT)
        answer = await triton.infer(question, region=region, priority=priority, timeout=60, request_id="test")
        return answer.samples.copy()


async def test_regions_are_lent_again_and_removed_at_the_end(triton_settings: Settings) -> None:
    before = our_regions()
    async with Triton(triton_settings) as triton:
        async with triton.region(100, 200) as first:
            assert first is not None
            async with triton.region(100, 200) as second, triton.region(100, 300) as other:
                assert second is not None
                assert other is not None
                assert len({first.name, second.name, other.name}) == 3
        async with triton.region(100, 200) as again:
            assert again in (first, second)
        assert our_regions() - before == {first.name, second.name, other.name}
    assert our_regions() == before


async def test_a_region_whose_use_ended_badly_is_not_lent_again(triton_settings: Settings) -> None:
    before = our_regions()
    async with Triton(triton_settings) as triton:
        with pytest.raises(ZeroDivisionError):
            async with triton.region(100, 200) as broken:
                raise ZeroDivisionError
        assert broken is not None
        async with triton.region(100, 200) as other:
            assert other is not None
            assert other is not broken
        await eventually(lambda: broken.name not in our_regions())
        assert other.name in our_regions()
    assert our_regions() == before
    async with Triton(triton_settings) as triton:  # closed before
        with pytest.raises(ZeroDivisionError):
            async with triton.region(100, 200):
                raise ZeroDivisionError
    assert our_regions() == before


async def test_a_region_is_removed_when_triton_has_done_with_it(triton: Triton, compute_log: ComputeLog) -> None:
    """While a request uses it, the model would write to memory that is not there."""
    before = our_regions()
    compute_log.begin()
    async with compute_log.held():
        running = asyncio.create_task(infer(triton, window(1), priority=1))
        await compute_log.reaches(1)
        waiting = [asyncio.create_task(infer(triton, window(2))) for _ in range(3)]
        await eventually(lambda: len(our_regions() - before) == 4)
        await asyncio.sleep(ARRIVED)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    np.testing.assert_allclose(await running, window(1) * GAINS, rtol=1e-6)
    await eventually(lambda: len(our_regions() - before) == 1)  # to be lent again
    np.testing.assert_allclose(await infer(triton, window(3)), window(3) * GAINS, rtol=1e-6)
    assert compute_log.computed() == [1, 3]


async def test_both_ways_give_the_same_answer(triton_settings: Settings) -> None:
    samples = np.random.default_rng(0).standard_normal(window(0).shape).astype(np.float32)
    answers = {}
    for way in ("on", "off", "auto"):
        async with Triton(changed(triton_settings, shared_memory=way)) as triton:
            await triton.load("htdemucs", 60)
            answers[way] = await infer(triton, samples)
    np.testing.assert_array_equal(answers["on"], answers["off"])
    np.testing.assert_array_equal(answers["on"], answers["auto"])
    np.testing.assert_allclose(answers["on"], samples * GAINS, rtol=1e-6)


class Elsewhere(Triton):
    """A client with a /dev/shm of its own: Triton finds none of its regions."""

    async def register(self, region: Region) -> None:
        """As usual, but the name is gone."""
        region.memory.unlink()
        await super().register(region)


@pytest.mark.parametrize("way", ["auto", "on"])
async def test_without_common_memory(triton_settings: Settings, way: Literal["auto", "on"]) -> None:
    before = our_regions()
    async with Elsewhere(changed(triton_settings, shared_memory=way)) as triton:
        await triton.load("htdemucs", 60)
        if way == "on":
            with pytest.raises(TritonError, match="shared memory"):
                await infer(triton, window(1))
        else:
            for value in (1.0, 2.0):  # the second does not try again
                np.testing.assert_allclose(await infer(triton, window(value)), window(value) * GAINS, rtol=1e-6)
    assert our_regions() == before


@pytest.mark.parametrize("way", ["on", "off"])
@pytest.mark.parametrize("model", ["empty", "silent", "htdemucs"])
async def test_misshapen_answers_are_errors(triton_settings: Settings, way: str, model: str) -> None:
    async with Triton(changed(triton_settings, shared_memory=way)) as triton:
        await triton.load(model, 60)
        # To an input of one frame htdemucs answers with one frame; the region holds an older, whole answer then.
        samples = window(1)[:, :1] if model == "htdemucs" else window(1)
        with pytest.raises(TritonError):
            await infer(triton, samples, model=model)


async def test_priority_one_overtakes_two(triton: Triton, compute_log: ComputeLog) -> None:
    compute_log.begin()
    async with compute_log.held():
        tasks = [asyncio.create_task(infer(triton, window(1)))]
        await compute_log.reaches(1)
        tasks += [asyncio.create_task(infer(triton, window(value))) for value in (2, 3, 4)]
        await asyncio.sleep(ARRIVED)  # so that these are in the queue first
        tasks += [asyncio.create_task(infer(triton, window(5), priority=1))]
    await asyncio.gather(*tasks)
    computed = compute_log.computed()
    assert sorted(computed) == [1, 2, 3, 4, 5]
    # Asked for last. The second may have been on its way into the model.
    assert computed.index(5) in (1, 2)


async def test_what_is_cancelled_in_the_queue_is_never_computed(triton: Triton, compute_log: ComputeLog) -> None:
    compute_log.begin()
    async with compute_log.held():
        first = asyncio.create_task(infer(triton, window(1)))
        await compute_log.reaches(1)
        second = asyncio.create_task(infer(triton, window(2)))
        await asyncio.sleep(ARRIVED)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
    await infer(triton, window(3))
    await first
    assert compute_log.computed() == [1, 3]


async def test_cancelling_a_separation_stops_the_model_within_a_segment(
    triton: Triton, triton_settings: Settings, compute_log: ComputeLog
) -> None:
    before = our_regions()
    separator = Separator(triton, ModelKeeper(triton, "htdemucs", triton_settings), triton_settings)
    begun = asyncio.Event()
    compute_log.begin()
    task = asyncio.create_task(separate(separator, ramp(20), lambda part: begun.set()))
    await begun.wait()
    async with compute_log.held():
        at_cancel = len(compute_log.computed())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await infer(triton, window(7))  # queued after all that was cancelled
    computed = compute_log.computed()
    assert computed.pop() == 7
    assert len(computed) <= at_cancel + 1
    await triton.__aexit__(None, None, None)
    assert our_regions() == before
