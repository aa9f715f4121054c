"""A model whose process hangs is as dead as one that is gone; one that is merely busy is not."""

from __future__ import annotations

import asyncio
import os
import signal

from servers.inference.keeper import ModelKeeper
from servers.inference.triton import Question, Triton
from servers.local import Stack
from servers.platform import telemetry
from servers.platform.settings import Settings
from tests.inference.fake import INPUT_BYTES, OUTPUT, OUTPUT_BYTES, eventually, stub_pids, window


def recoveries() -> float:
    """How often the model was found dead."""
    return float(telemetry.MODEL_RECOVERIES.labels("htdemucs")._value.get())


async def test_a_hung_model_is_loaded_again(triton: Triton, triton_settings: Settings, triton_stack: Stack) -> None:
    (hung,) = stub_pids(triton_stack)
    os.kill(hung, signal.SIGSTOP)
    try:
        keeper = ModelKeeper(triton, "htdemucs", triton_settings, probe_timeout=0.5)
        before = recoveries()
        checking = asyncio.create_task(keeper.check())
        await eventually(lambda: recoveries() > before)
        # Triton's unloading waits for the process; in the end somebody must end it.
        os.kill(hung, signal.SIGKILL)
        await asyncio.wait_for(checking, 200)
    finally:
        if hung in stub_pids(triton_stack):
            os.kill(hung, signal.SIGCONT)
    await triton.probe("htdemucs", 60)
    assert hung not in stub_pids(triton_stack)


async def test_a_busy_model_is_left_alone(triton: Triton, triton_settings: Settings, triton_stack: Stack) -> None:
    before = stub_pids(triton_stack)
    # Probes wait behind the segments: with this much patience none is answered in time.
    keeper = ModelKeeper(triton, "htdemucs", triton_settings, probe_timeout=1.0)

    async def load() -> None:
        async with triton.region(INPUT_BYTES, OUTPUT_BYTES) as region:
            await triton.infer(
                Question("htdemucs", "mix", window(0.5), "stems", OUTPUT),
                region=region,
                priority=1,
                timeout=30,
                request_id="busy",
            )

    segments = [asyncio.create_task(load()) for _ in range(20)]
    await asyncio.sleep(0.3)
    checks = [asyncio.create_task(keeper.check()) for _ in range(2)]
    await asyncio.gather(*checks, *segments)
    assert stub_pids(triton_stack) == before
