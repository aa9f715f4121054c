"""How it looks when a store is away: worth another try later, whatever was asked."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg
from minio.error import MinioException
from redis.exceptions import RedisError
from urllib3.exceptions import HTTPError

OUTAGES: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection that was lost in the middle of something
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,  # deadlocks: the one that was chosen may try again
    MinioException,
    HTTPError,
    RedisError,
)

T = TypeVar("T")


async def patiently(work: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Do ``work``, and again while a store is away, for ``seconds`` at most; then the outage is raised.

    ``work`` may have been done although it failed: it must do no harm twice.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            return await work()
        except OUTAGES:
            pause = random.uniform(0.2, 0.6)
            if time.monotonic() + pause > until:
                raise
            await asyncio.sleep(pause)
