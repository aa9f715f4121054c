"""Models and Triton itself die; separations go on, exactly, and what kills the model harms nobody else."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from servers.inference.asking import ATTEMPTS, InferenceFailed
from servers.inference.keeper import ModelKeeper, ModelUnavailable
from servers.inference.separation import Separated, Separator
from servers.inference.triton import Triton
from servers.local import Stack
from servers.platform.settings import Settings
from tests.inference.fake import (
    DELAY,
    GAINS,
    ComputeLog,
    changed,
    eventually,
    kill_model,
    our_regions,
    ramp,
    separate,
    stub_pids,
)

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
async def keeper(triton: Triton, triton_settings: Settings) -> AsyncIterator[ModelKeeper]:
    """Looks after the fake model, when asked to."""
    watcher = ModelKeeper(triton, "htdemucs", triton_settings)
    await watcher.check()
    yield watcher
    await watcher.check()  # for the next test


def separator(triton: Triton, keeper: ModelKeeper, settings: Settings) -> Separator:
    """One that is impatient."""
    return Separator(triton, keeper, settings, retry_seconds=0.02)


def once(action: Callable[[], None]) -> Callable[[Separated], None]:
    """Calls ``action`` for the first part only."""
    waiting = [action]

    def on_part(part: Separated) -> None:
        if waiting:
            waiting.pop()()

    return on_part


async def test_a_model_that_dies_idle_is_noticed_and_loaded_again(
    triton: Triton, triton_settings: Settings, triton_stack: Stack
) -> None:
    async with ModelKeeper(triton, "htdemucs", triton_settings, probe_seconds=0.2) as watcher:
        await watcher.ensure_alive()
        (old,) = stub_pids(triton_stack)
        os.kill(old, signal.SIGKILL)
        await eventually(lambda: stub_pids(triton_stack) not in ([], [old]))
        await watcher.check()
        await triton.probe("htdemucs", 10)


async def test_a_model_that_dies_in_the_middle_costs_nothing(
    triton: Triton, keeper: ModelKeeper, triton_settings: Settings, triton_stack: Stack
) -> None:
    track = ramp(5)
    stems = await separate(separator(triton, keeper, triton_settings), track, once(lambda: kill_model(triton_stack)))
    np.testing.assert_allclose(stems, track * GAINS, atol=1e-6)


async def test_a_triton_that_dies_in_the_middle_costs_nothing(
    triton: Triton, keeper: ModelKeeper, triton_settings: Settings, triton_stack: Stack
) -> None:
    """More regions than a segment has attempts: each must be made known to the new Triton without costing one."""
    settings = changed(triton_settings, segments_in_flight=8, shared_memory="on")
    track = ramp(9)
    before = our_regions()
    await separate(separator(triton, keeper, settings), ramp(8))
    assert len(our_regions() - before) == 8
    old = triton_stack.processes["triton"].pid
    stems = await separate(separator(triton, keeper, settings), track, once(lambda: os.kill(old, signal.SIGKILL)))
    np.testing.assert_allclose(stems, track * GAINS, atol=1e-6)
    assert triton_stack.processes["triton"].pid != old


async def test_a_segment_that_takes_too_long_is_tried_again_and_given_up(
    triton: Triton, keeper: ModelKeeper, triton_settings: Settings, compute_log: ComputeLog
) -> None:
    hasty = changed(triton_settings, segment_timeout_seconds=1.0)
    compute_log.begin()
    async with compute_log.held():
        with pytest.raises(InferenceFailed, match=f"{ATTEMPTS} attempts, last: DEADLINE_EXCEEDED"):
            await separate(separator(triton, keeper, hasty), ramp(1))
    assert len(compute_log.computed()) > 1  # and was not merely waited for


async def test_a_model_that_cannot_be_loaded_is_told_after_patience(triton: Triton, triton_settings: Settings) -> None:
    watcher = ModelKeeper(triton, "no_such_model", changed(triton_settings, model_load_timeout_seconds=0.3))
    with pytest.raises(ModelUnavailable, match="no_such_model"):
        await watcher.wait()


async def test_waiting_behind_others_is_no_failure(
    triton: Triton, keeper: ModelKeeper, triton_settings: Settings
) -> None:
    """Each may wait for five segments, and there are sixteen at once."""
    hasty = changed(triton_settings, segment_timeout_seconds=5 * DELAY)
    shared = separator(triton, keeper, hasty)
    track = ramp(2)
    for stems in await asyncio.gather(*(separate(shared, track) for _ in range(8))):
        np.testing.assert_allclose(stems, track * GAINS, atol=1e-6)
