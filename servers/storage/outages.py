"""How it looks when a store is away: worth another try later, whatever was asked."""

from __future__ import annotations

import asyncpg
from minio.error import MinioException
from redis.exceptions import RedisError
from urllib3.exceptions import HTTPError

OUTAGES: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,  # deadlocks: the one that was chosen may try again
    MinioException,
    HTTPError,
    RedisError,
)
