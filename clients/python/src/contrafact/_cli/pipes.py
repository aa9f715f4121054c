"""Bytes from standard input and to standard output, without blocking the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
from collections.abc import AsyncGenerator

PIECE_BYTES = 64 << 10


async def read_in() -> AsyncGenerator[bytes, None]:
    """Yield what standard input has, as soon as it has anything, in pieces of at most 64 KiB."""
    if not _can_be_watched(sys.stdin.fileno()):
        while data := await asyncio.to_thread(os.read, sys.stdin.fileno(), PIECE_BYTES):
            yield data
        return
    reader = asyncio.StreamReader(PIECE_BYTES)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer
    )
    with contextlib.closing(transport):
        while data := await reader.read(PIECE_BYTES):
            yield data


def _can_be_watched(descriptor: int) -> bool:
    """Return whether the event loop can wait for it: not for a regular file or /dev/null, nor on Windows."""
    mode = os.fstat(descriptor).st_mode
    waits = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)
    return waits and sys.platform != "win32"


async def write_out(data: bytes) -> None:
    """Write to standard output, and wait until it is taken."""
    await asyncio.to_thread(_write, data)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
