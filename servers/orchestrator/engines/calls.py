"""One bidirectional call to an engine, spoken to from the event loop."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status


class CallEnded(Exception):
    """The call ended while it was written to; reading tells why."""


class Call:
    """A bidirectional call through grpc's blocking API, in threads of its own.

    The asyncio API replaces what a server answers while it is written to by "INTERNAL: Internal error from Core"
    (grpc/grpc issue 36066): one refusal in three would lose its reason.

    One task may write and one may read. At most one message is on its way in each direction, beside what gRPC holds.

    Args:
        method: a stream-stream method of a stub on a channel of the blocking API.
        timeout: deadline in seconds.
        metadata: sent along.
    """

    def __init__(self, method: Any, timeout: float, metadata: dict[str, str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._moved = asyncio.Event()
        self._ended = asyncio.Event()
        self._reader = ThreadPoolExecutor(1, "engine-call")
        self._reading: asyncio.Future[Any] | None = None
        self._call = method(self._messages(), timeout=timeout, metadata=tuple(metadata.items()), wait_for_ready=True)
        self._call.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._end))

    async def write(self, message: Message) -> None:
        """Send ``message``; return when gRPC has taken it. Raises CallEnded."""
        self._moved.clear()
        if not self._ended.is_set():
            self._requests.put(message)
            await self._moved.wait()
        if self._ended.is_set():
            raise CallEnded

    def done_writing(self) -> None:
        """Say that nothing more will be written."""
        self._requests.put(None)

    async def read(self) -> Any:
        """The next response; None at the end. Raises grpc.RpcError. When cancelled, the call must be closed."""
        self._reading = self._loop.run_in_executor(self._reader, next, self._call, None)
        return await asyncio.shield(self._reading)

    async def close(self) -> None:
        """Cancel what is left of the call, and wait for it to end."""
        self._call.cancel()
        self._requests.put(None)  # frees grpc's thread
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._ended.wait()  # its threads call this loop no more
        self._reader.shutdown(wait=False)

    def _messages(self) -> Iterator[Message]:
        """What grpc's thread takes: when it asks for the next message, it has sent the last."""
        while (message := self._requests.get()) is not None:
            yield message
            self._loop.call_soon_threadsafe(self._moved.set)

    def _end(self) -> None:
        self._ended.set()
        self._moved.set()


def error_of(error: grpc.RpcError) -> tuple[grpc.StatusCode, str, str]:
    """Status, reason ("" if the server gave none) and message of a failed call."""
    call: Any = error
    status = rpc_status.from_call(call)
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status is not None else ():
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
    return call.code(), info.reason, call.details() or ""
