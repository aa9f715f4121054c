"""Bring the database to the schema of this release: ``python -m servers.storage.migrate``.

Any number of servers may do so at once: one at a time holds the lock, the others find nothing to do.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config

from servers.platform.settings import settings


def migrate(database_url: str) -> None:
    """Apply all migrations that the database does not have yet."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    # The URL travels outside the config file format, in which a percent sign would be special.
    config.attributes["database_url"] = database_url
    command.upgrade(config, "head")


if __name__ == "__main__":
    migrate(settings().database_url)
