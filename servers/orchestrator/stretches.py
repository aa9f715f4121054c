"""Parts of recordings."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from servers.media.blocks import Block
from servers.media.decode import decode


def part(start_seconds: float, seconds: float, rate: int, frames: int) -> tuple[int, int]:
    """Where a part of a recording begins, and how many frames of it there are, 0 if it is outside.

    Args:
        start_seconds: Where it is to begin.
        seconds: How long it is to be; 0: to the end.
        rate: The recording's, in Hz.
        frames: The recording's.
    """
    start = min(round(min(start_seconds, frames / rate) * rate), frames)
    rest = frames - start
    return start, min(rest, round(min(seconds, frames / rate) * rate)) if seconds else rest


async def stretch(path: Path, start: int, frames: int) -> AsyncGenerator[Block, None]:
    """``frames`` frames of a file from ``start`` on, as blocks from frame 0."""
    async with aclosing(decode(path, start=start)) as blocks:
        async for block in blocks:
            samples = block.samples[:, : max(0, start + frames - block.start)]
            if samples.shape[1]:
                yield Block(samples, block.sample_rate, block.start - start)
            if block.end >= start + frames:
                return
