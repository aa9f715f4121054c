"""Shared memory in ``/dev/shm`` that ended processes left behind.

Two kinds, both named after their maker: Triton's Python backend begins its regions with the prefix it was
given, and ``servers.inference`` names its own ``contrafact-PID-…``.
"""

from __future__ import annotations

from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

FOLDER = Path("/dev/shm")


def remove_prefix(prefix: str) -> None:
    """Remove every region of this prefix, which nobody else uses."""
    for region in FOLDER.glob(f"{prefix}*") if FOLDER.is_dir() else ():
        region.unlink(missing_ok=True)


def remove_of_process(pid: int) -> None:
    """Remove what an ended process of ours shared. Triton may still map it; only the name goes."""
    if not psutil.pid_exists(pid):
        remove_prefix(f"contrafact-{pid}-")
