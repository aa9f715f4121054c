"""Decoding as an asynchronous stream of blocks."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator

from servers.media.blocks import Block
from servers.media.source import Source

QUEUE_BLOCKS = 4
"""Blocks decoded ahead of the consumer: 2 MiB of stereo."""


async def decode(path: str | os.PathLike[str], *, start: int = 0) -> AsyncGenerator[Block, None]:
    """Decode a file from frame ``start`` on, in a thread of its own.

    Close the generator when leaving it early (``contextlib.aclosing``): that stops the thread, waits for it
    and closes the file. Cancellation does the same. Everything before ``start`` is decoded and dropped, which
    keeps positions exact in formats that cannot seek exactly.

    Yields:
        Blocks of at most 65,536 frames at the file's own rate, without gaps. Mono stays mono and stereo
        stereo; more channels are mixed down to stereo as :mod:`servers.media.downmix` describes, so 1 or 2
        channels. All blocks together have exactly ``probe(path).frames - start`` frames.

    Raises:
        MediaError: not acceptable audio, possibly only at the end.
        OSError: the file cannot be read.
        ValueError: ``start`` is negative.
    """
    if start < 0:
        raise ValueError("start must not be negative")
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Block | BaseException | None] = asyncio.Queue()
    free = threading.Semaphore(QUEUE_BLOCKS)  # bounds the queue: asyncio's own limit does not work across threads
    stop = threading.Event()

    def hand_over(item: Block | BaseException | None) -> None:
        try:
            loop.call_soon_threadsafe(queue.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody is listening any more
            stop.set()

    def work() -> None:
        try:
            with Source(path) as source:
                for block in source.blocks(start):
                    free.acquire()
                    if stop.is_set():
                        return
                    hand_over(block)
        except BaseException as error:
            hand_over(error)
        else:
            hand_over(None)

    thread = threading.Thread(target=work, name="decode", daemon=True)
    thread.start()
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            free.release()
            yield item
    finally:
        stop.set()
        free.release()
        # The thread ends within one packet or one block, but the loop must not wait even for that.
        await asyncio.shield(asyncio.to_thread(thread.join))
