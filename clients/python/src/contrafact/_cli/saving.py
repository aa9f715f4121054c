"""Downloading one thing, for a command that does nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from contrafact._cli.progress import reporter

if TYPE_CHECKING:
    from contrafact._client import Client


async def saved(client: Client, name: str, output: Path) -> None:
    """Download what has that resource name, show how far it is, and print the path of the file."""
    show = reporter(json=False)
    try:
        path = await client.download(
            name, output, progress=lambda done, total: show.bytes_done("download", done, total)
        )
    finally:
        show.close()
    typer.echo(str(path))
