"""Streams in both directions, through grpc's blocking API from threads of its own.

Its asyncio API replaces what a server answers while it is still written to; see ``_send``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from contrafact._errors import from_rpc
from contrafact._send import Outgoing


async def exchange(
    method: Any, messages: Iterator[Any], metadata: tuple[str, Any]
) -> AsyncGenerator[Any, None]:
    """Send messages, and yield what the server answers to them meanwhile and after.

    Args:
        method: a method of a stub on a channel of the blocking API.
        messages: iterated over in another thread, whose errors cancel the call.
        metadata: of :meth:`contrafact._channel.Connection.metadata`.
    """
    outgoing = Outgoing(messages)
    request_id, pairs = metadata
    call = method(iter(outgoing), metadata=pairs)
    reader = ThreadPoolExecutor(1, "contrafact-exchange")
    try:
        while True:
            reading = asyncio.get_running_loop().run_in_executor(reader, next, call, None)
            if (response := await asyncio.shield(reading)) is None:
                return
            yield response
    except grpc.RpcError as error:
        if outgoing.failure is not None:
            raise outgoing.failure from None
        raise from_rpc(error, request_id) from None
    finally:
        outgoing.stop()
        call.cancel()
        reader.shutdown(wait=False)
