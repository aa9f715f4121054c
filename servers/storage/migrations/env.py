"""How Alembic connects: through asyncpg, under an advisory lock."""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

# Any constant of our own: whoever holds it migrates.
LOCK = 0x636F6E7472616661


def upgrade(connection: Connection) -> None:
    """Run the migrations on ``connection``."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()


async def main() -> None:
    """Connect and upgrade in one transaction: all of it happens or nothing."""
    url = str(context.config.attributes["database_url"]).replace("postgresql://", "postgresql+asyncpg://", 1)
    engine = create_async_engine(url, poolclass=pool.NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(upgrade)
    await engine.dispose()


asyncio.run(main())
