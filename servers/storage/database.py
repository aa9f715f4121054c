"""The database: PostgreSQL through ``asyncpg``."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from servers.platform.settings import Settings

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
else:
    Pool = asyncpg.Pool
    Connection = asyncpg.pool.PoolConnectionProxy

Row = asyncpg.Record


# How long to wait for somebody else's transfer of the same content.
EXCLUSIVE_SECONDS = 600.0


async def _prepare(connection: Any) -> None:
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


async def connect(settings: Settings) -> Pool:
    """A pool of connections; JSONB columns are Python values. Close it with ``await pool.close()``."""
    return await asyncpg.create_pool(
        settings.database_url,
        min_size=1,
        # Each job may wait for a name (exclusive) while its heartbeat and its pieces are written.
        max_size=16 + settings.worker_concurrency + settings.interactive_slots,
        command_timeout=30,
        # Else each prepared statement has a timer, whose context keeps the whole call that made it for five minutes.
        max_cached_statement_lifetime=0,
        timeout=10,
        init=_prepare,
        server_settings={"application_name": "contrafact", "idle_in_transaction_session_timeout": "300000"},
    )


@asynccontextmanager
async def exclusive(pool: Pool, name: str) -> AsyncIterator[Connection]:
    """Keep all others out who ask for the same ``name``, and lend a connection, outside any transaction.

    For work on content that PostgreSQL and the object store hold together: the transfer is done first, and the rows
    that name it are written in a transaction as short as any. A lost connection gives the name up.
    """
    async with pool.acquire() as connection:
        await connection.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", name, timeout=EXCLUSIVE_SECONDS)
        try:
            yield connection
        finally:
            await connection.execute("SELECT pg_advisory_unlock(hashtextextended($1, 0))", name)
