"""Bytes from standard input and to standard output, without blocking the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator

PIECE_BYTES = 64 << 10


async def read_in() -> AsyncGenerator[bytes, None]:
    """Yield what standard input has, as soon as it has anything, in pieces of at most 64 KiB."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(PIECE_BYTES)
    try:
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer
        )
    except (ValueError, NotImplementedError):  # a regular file, which never blocks; or Windows
        while data := await asyncio.to_thread(sys.stdin.buffer.read, PIECE_BYTES):
            yield data
        return
    with contextlib.closing(transport):
        while data := await reader.read(PIECE_BYTES):
            yield data


async def write_out(data: bytes) -> None:
    """Write to standard output, and wait until it is taken."""
    await asyncio.to_thread(_write, data)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
