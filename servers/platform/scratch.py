"""Temporary files that do not outlive a killed worker for long."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "contrafact-scratch-"


@contextmanager
def scratch(parent: Path | None) -> Iterator[Path]:
    """A folder in ``parent`` (None: the system's) for this process, removed at the end.

    Processes that were killed could not remove theirs, so theirs are removed first. The kernel tells who lives:
    each process holds a lock on its folder.
    """
    where = Path(parent or tempfile.gettempdir())
    for left in where.glob(f"{_PREFIX}*"):
        if (lock := _lock(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=where))
        lock = _lock(folder)
        if lock is not None and folder.exists():
            break
        if lock is not None:  # another process took it for an abandoned one before it was locked
            os.close(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """The locked folder's descriptor, or None if it is another's or gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
