"""The queue on a real Valkey that forgets everything or is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from servers.local import Stack, running_stack
from servers.orchestrator.jobs.queue import JobQueue, QueueUnavailable, consume
from servers.platform.settings import Settings
from tests.conftest import stack_settings

pytestmark = pytest.mark.timeout(40)


async def forget(stack: Stack, settings: Settings) -> None:
    async with Redis.from_url(settings.redis_url) as redis:
        await redis.flushall()


async def kill(stack: Stack, settings: Settings) -> None:
    os.kill(stack.processes["valkey"].pid, signal.SIGKILL)


@pytest.mark.parametrize("trouble", [forget, kill])
async def test_a_long_job_goes_on_and_keeps_nobody_waiting(tmp_path: Path, trouble) -> None:  # type: ignore[no-untyped-def]
    with running_stack(tmp_path, only={"valkey"}) as stack:
        settings = stack_settings(stack).model_copy(update={"worker_concurrency": 2, "lease_seconds": 2.0})
        begun: list[UUID] = []
        ended: list[UUID] = []
        release = asyncio.Event()

        async def handler(job: UUID) -> None:
            begun.append(job)
            if job == long:
                await release.wait()
            ended.append(job)

        long, later = uuid4(), uuid4()
        async with asyncio.timeout(30), JobQueue(settings) as queue:
            consumer = asyncio.create_task(consume(settings, handler, asyncio.Event()))
            await queue.enqueue(long, "INTERACTIVE", 0)
            while long not in begun:
                await asyncio.sleep(0.01)
            await trouble(stack, settings)
            while later not in ended:  # as the reconciler does
                try:
                    await queue.enqueue(later, "BACKGROUND", 0)
                except QueueUnavailable:
                    continue
                await asyncio.sleep(0.2)
            assert long not in ended
            consumer.cancel()
            await asyncio.sleep(0)
            release.set()
            with pytest.raises(asyncio.CancelledError):
                await consumer
            assert ended.count(long) == 1
