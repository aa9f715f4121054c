"""Streams in both directions, through grpc's blocking API from threads of its own.

Its asyncio API replaces what a server answers while it is still written to; see ``_send``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from contrafact._errors import from_rpc


async def exchange(
    method: Any, messages: Iterator[Any], metadata: tuple[str, Any]
) -> AsyncGenerator[Any, None]:
    """Send messages, and yield what the server answers to them meanwhile and after.

    Args:
        method: a method of a stub on a channel of the blocking API.
        messages: iterated over in another thread, whose errors cancel the call.
        metadata: of :meth:`contrafact._channel.Connection.metadata`.
    """
    stopped = threading.Event()
    failures: list[Exception] = []

    def requests() -> Iterator[Any]:
        try:
            while not stopped.is_set() and (message := next(messages, None)) is not None:
                yield message
        except Exception as error:
            failures.append(error)
            raise  # grpc then cancels the call: the server must not take the pieces for the whole

    request_id, pairs = metadata
    call = method(requests(), metadata=pairs)
    reader = ThreadPoolExecutor(1, "contrafact-exchange")
    try:
        while True:
            reading = asyncio.get_running_loop().run_in_executor(reader, next, call, None)
            if (response := await asyncio.shield(reading)) is None:
                return
            yield response
    except grpc.RpcError as error:
        if failures:
            raise failures[0] from None
        raise from_rpc(error, request_id) from None
    finally:
        stopped.set()
        call.cancel()
        reader.shutdown(wait=False)
