"""Patience with those who send streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import grpc

from servers.platform.errors import ApiError
from servers.platform.settings import Settings

T = TypeVar("T")


async def paced(
    requests: AsyncIterator[T],
    size: Callable[[T], int],
    settings: Settings,
    advice: str,
    *,
    most_seconds: float = float("inf"),
) -> AsyncIterator[T]:
    """Pass messages on, and give up on clients that send nothing, or hardly anything, for long.

    Args:
        requests: The stream.
        size: How many bytes a message brings.
        settings: What is too long.
        advice: What the client should do instead.
        most_seconds: That the whole may take.

    Raises:
        ApiError: DEADLINE_EXCEEDED, UPLOAD_TOO_SLOW.
    """
    idle = settings.upload_idle_seconds
    began, received = time.monotonic(), 0
    while True:
        try:
            async with asyncio.timeout(idle):
                request = await anext(requests, None)
        except TimeoutError:
            raise _too_slow(f"nothing arrived for {idle:g} s", advice) from None
        if request is None:
            return
        yield request
        received += size(request)
        seconds = time.monotonic() - began
        slow = seconds > idle and received < seconds * settings.upload_min_bytes_per_second
        if slow or seconds > most_seconds:
            raise _too_slow(f"{received} bytes in {seconds:.0f} s", advice)


def _too_slow(detail: str, advice: str) -> ApiError:
    return ApiError(grpc.StatusCode.DEADLINE_EXCEEDED, "UPLOAD_TOO_SLOW", f"{detail}; {advice}")
