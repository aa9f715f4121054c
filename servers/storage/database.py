"""The database: PostgreSQL through ``asyncpg``."""

from __future__ import annotations

import json
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


async def _prepare(connection: Any) -> None:
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


async def connect(settings: Settings) -> Pool:
    """A pool of connections; JSONB columns are Python values. Close it with ``await pool.close()``."""
    return await asyncpg.create_pool(
        settings.database_url,
        min_size=1,
        max_size=10,
        command_timeout=30,
        timeout=10,
        init=_prepare,
        server_settings={"application_name": "contrafact", "idle_in_transaction_session_timeout": "300000"},
    )
