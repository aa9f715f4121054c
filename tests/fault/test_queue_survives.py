"""The queue on a real Valkey that forgets everything or is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis

from servers.local import Stack, running_stack
from servers.orchestrator.jobs.queue import JobQueue, QueueUnavailable, consume
from servers.platform.settings import Settings
from tests.conftest import stack_settings

pytestmark = pytest.mark.timeout(240)


async def forget(stack: Stack, settings: Settings) -> None:
    async with Redis.from_url(settings.redis_url) as redis:
        await redis.flushall()


async def kill(stack: Stack, settings: Settings) -> None:
    os.kill(stack.processes["valkey"].pid, signal.SIGKILL)


@pytest.mark.parametrize("trouble", [forget, kill])
async def test_who_works_works_on_and_the_others_are_woken(tmp_path: Path, trouble) -> None:  # type: ignore[no-untyped-def]
    with running_stack(tmp_path, only={"valkey"}) as stack:
        settings = stack_settings(stack).model_copy(update={"worker_concurrency": 2, "lease_seconds": 2.0})
        begun: list[int] = []
        ended: list[int] = []
        release = asyncio.Event()

        async def handler() -> None:
            begun.append(number := len(begun))
            if number == 0:
                await release.wait()
            ended.append(number)

        async with asyncio.timeout(90), JobQueue(settings) as queue:
            consumer = asyncio.create_task(consume(settings, handler, asyncio.Event()))
            await queue.send("first")
            while not begun:
                await asyncio.sleep(0.01)
            await trouble(stack, settings)
            ended.clear()
            while not ended:  # as the dispatcher does
                with suppress(QueueUnavailable):
                    await queue.send("later")
                await asyncio.sleep(0.2)
            assert 0 not in ended
            consumer.cancel()
            await asyncio.sleep(0)
            release.set()
            with pytest.raises(asyncio.CancelledError):
                await consumer
            assert ended.count(0) == 1
