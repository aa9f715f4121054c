"""Client streams, sent through grpc's blocking API from its own thread.

Its asyncio API replaces what a server answers before the end of a client stream by "INTERNAL: Internal error
from Core" (grpc/grpc issue 36066), and such answers matter: a refusal says why, and what is known already is
not sent again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from contrafact._channel import Connection, upload_deadline
from contrafact._errors import ContrafactError, from_rpc
from contrafact._retry import UPLOAD_RESUMABLE, Attempts
from contrafact._source import Source

ByteProgress = Callable[[int, int | None], None]
"""Called with the bytes done so far and how many there are in all; None when unknown."""


class Outgoing:
    """Messages on their way, iterated over in a thread of grpc's.

    Attributes:
        failure: the error of theirs that has cancelled the call, if one has.
    """

    def __init__(self, messages: Iterator[Any]) -> None:
        self.failure: Exception | None = None
        self._messages = messages
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        try:
            while not self._stopped.is_set() and (message := next(self._messages, None)) is not None:
                yield message
        except Exception as error:
            self.failure = error
            raise  # grpc then cancels the call: the server must not take the pieces for the whole

    def stop(self) -> None:
        """Send no more."""
        self._stopped.set()


async def send(method: Any, messages: Iterator[Any], metadata: tuple[str, Any], timeout: float | None) -> Any:
    """Send messages, and return what the server answers to them.

    Args:
        method: a method of a stub on a channel of the blocking API.
        messages: iterated over in another thread; an error of theirs cancels the call, and is raised here.
        metadata: of :meth:`contrafact._channel.Connection.metadata`.
        timeout: deadline of the call in seconds; None: none.
    """
    loop = asyncio.get_running_loop()
    ended, outgoing = asyncio.Event(), Outgoing(messages)

    def done(_call: object) -> None:
        loop.call_soon_threadsafe(ended.set)

    request_id, pairs = metadata
    call = method.future(iter(outgoing), timeout=timeout, metadata=pairs)
    call.add_done_callback(done)
    try:
        await ended.wait()
    finally:
        outgoing.stop()
        call.cancel()
    error = call.exception()
    if error is None:
        return call.result()
    if outgoing.failure is not None:
        raise outgoing.failure
    raise from_rpc(error, request_id)


async def send_sources(
    connection: Connection,
    method: Callable[[], Any],
    messages: Callable[[], Iterator[Any]],
    sources: Sequence[Source],
) -> Any:
    """Send messages that are made of sources; all of them again, whenever the stream breaks.

    Args:
        connection: to the server.
        method: gives a method of a stub on the connection's blocking channel.
        messages: makes them, from the beginning. The same ones must do the same.
        sources: what they are made of, measured.
    """
    attempts = Attempts(connection, UPLOAD_RESUMABLE)
    sizes = [source.size for source in sources]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    while True:
        try:
            return await send(method(), messages(), connection.metadata(), upload_deadline(total))
        except ContrafactError as error:
            if not all(source.seekable for source in sources):
                raise
            await attempts.failed(error)


def reporter(progress: ByteProgress | None) -> ByteProgress:
    """Return what calls ``progress`` in the event loop of now, from whichever thread."""
    loop = asyncio.get_running_loop()

    def report(done: int, total: int | None) -> None:
        if progress is not None:
            loop.call_soon_threadsafe(progress, done, total)

    return report
