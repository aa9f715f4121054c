"""Live voices: audio goes to the server block by block, and comes back in another voice.

The stream is one of grpc's blocking API, read in a thread of its own, for the reason given in ``_send``: its
asyncio API often hides why a server ended a stream that is still being written.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc

from contrafact._channel import Connection
from contrafact._errors import DeadlineExceeded, Unavailable, from_rpc
from contrafact.v1.conversion_pb2 import (
    ConvertVoiceConfig,
    ConvertVoiceEnd,
    ConvertVoiceRequest,
    ConvertVoiceResponse,
)
from contrafact.v1.conversion_pb2_grpc import ConversionServiceStub

if TYPE_CHECKING:
    from typing_extensions import Buffer

ANSWER_SECONDS = 30.0
"""How long the server may take to accept the stream; it does not wait for the voice to be loaded."""

MESSAGE_BYTES = 256 << 10
MESSAGES_AHEAD = 4


def samples(block: Buffer) -> bytes:
    """Return the bytes of a block of mono samples, float32 little-endian.

    Args:
        block: bytes, or an object with a buffer of 32-bit floats in one dimension, for example an array;
            dimensions of size 1 do not count.

    Raises:
        ValueError: it is not mono float32, or not whole samples.
    """
    view = memoryview(block)
    if view.format not in ("B", "b", "c", "f", "<f"):
        raise ValueError(f"a block is float32 or bytes, not of format {view.format!r}")
    if view.nbytes != view.itemsize * max(view.shape or (1,)):
        raise ValueError(f"a block is mono, not of shape {view.shape}")
    if view.nbytes % 4:
        raise ValueError(f"a block of {view.nbytes} bytes does not end with a whole float32 sample")
    return view.tobytes()


class LiveVoice:
    """A voice that is converted while it sounds: an asynchronous iterator over blocks of converted audio.

        async with client.convert_voice(voice, microphone, sample_rate=48_000) as live:
            async for block in live:
                speaker.write(block)

    Blocks are bytes: mono float32, little-endian. In all they have as many frames as were sent. A broken
    connection ends the stream: what the server knew of the voice is lost with it. A cold voice is loaded
    before its first block comes back; after about a minute the server gives that up with Unavailable,
    VOICE_UNAVAILABLE. Blocks have no deadline of their own: a dead peer is found by keepalive. A cancelled
    wait for a block loses nothing: the next wait gets it.

    Attributes:
        delay_seconds: from the arrival of a sample to its departure, computing not counted.
        block_frames: frames that the server converts at once.
    """

    def __init__(
        self, connection: Connection, config: ConvertVoiceConfig, blocks: AsyncIterable[Buffer]
    ) -> None:
        self.delay_seconds = 0.0
        self.block_frames = 0
        self._connection = connection
        self._config = config
        self._blocks = blocks
        self._outgoing: queue.SimpleQueue[ConvertVoiceRequest | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(MESSAGES_AHEAD)
        self._stopped = threading.Event()
        self._receiving = asyncio.Lock()
        self._pending: asyncio.Future[ConvertVoiceResponse | None] | None = None
        self._missing = 0  # bytes sent that did not come back yet
        self._call: Any = None
        self._request_id = ""
        self._feeding: asyncio.Task[None] | None = None
        self._reader: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> Self:
        """Open the stream, and wait until the server accepts it.

        Raises:
            ContrafactError: it does not, or does not answer.
        """
        self._loop = asyncio.get_running_loop()
        self._request_id, metadata = self._connection.metadata()
        self._reader = ThreadPoolExecutor(1, "contrafact-live")
        stub = ConversionServiceStub(self._connection.blocking_channel)
        self._outgoing.put(ConvertVoiceRequest(config=self._config))
        try:
            self._call = stub.ConvertVoice(self._requests(), metadata=metadata)
            async with asyncio.timeout(ANSWER_SECONDS):
                first = await self._receive()
            if first is None or not first.HasField("started"):
                raise Unavailable("the stream ended before it began", reason="STREAM_ENDED")
        except BaseException as error:
            await self.close()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(f"the server did not answer within {ANSWER_SECONDS:g} s") from None
            raise
        self.delay_seconds = first.started.algorithmic_delay_seconds
        self.block_frames = first.started.block_frames
        self._feeding = asyncio.create_task(self._feed())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next converted block.

        Raises:
            ContrafactError: the server ended the stream.
            Exception: what the blocks to convert raised.
        """
        if self._feeding is None:
            raise RuntimeError("a live voice is opened with 'async with'")
        try:
            response = await self._receive()
        except Exception:
            if self._feeding.done() and (failure := self._feeding.exception()):
                raise failure from None
            raise
        if response is not None:
            self._missing -= len(response.audio)
            return response.audio
        if not self._feeding.done() or self._missing:
            raise Unavailable("the stream ended before its audio", reason="STREAM_ENDED")
        raise StopAsyncIteration

    async def close(self) -> None:
        """End the stream, finished or not."""
        self._stopped.set()
        self._outgoing.put(None)
        if self._call is not None:
            self._call.cancel()
        if self._pending is not None:
            await asyncio.gather(self._pending, return_exceptions=True)
        if self._reader is not None:
            self._reader.shutdown(wait=False)
        if self._feeding is not None:
            self._feeding.cancel()
            await asyncio.gather(self._feeding, return_exceptions=True)
        if hasattr(self._blocks, "aclose"):
            await self._blocks.aclose()

    async def _receive(self) -> ConvertVoiceResponse | None:
        """Return the next response, None after the last one."""
        async with self._receiving:
            if self._pending is None:
                self._pending = self._loop.run_in_executor(self._reader, next, self._call, None)
            try:
                response = await asyncio.shield(self._pending)
            except grpc.RpcError as error:
                raise from_rpc(error, self._request_id) from None
            self._pending = None
            return response

    async def _feed(self) -> None:
        """Hand over the blocks as fast as they are sent."""
        try:
            async for block in self._blocks:
                data = samples(block)
                for begin in range(0, len(data), MESSAGE_BYTES):
                    piece = data[begin : begin + MESSAGE_BYTES]
                    await self._room.acquire()
                    self._missing += len(piece)
                    self._outgoing.put(ConvertVoiceRequest(audio=piece))
            self._outgoing.put(ConvertVoiceRequest(end=ConvertVoiceEnd()))
            self._outgoing.put(None)
        except Exception:
            self._call.cancel()  # the server must not take what it has for the whole
            raise

    def _requests(self) -> Iterator[ConvertVoiceRequest]:
        """Yield what is to be sent; grpc iterates in a thread of its own."""
        while (message := self._outgoing.get()) is not None and not self._stopped.is_set():
            yield message
            if message.HasField("audio"):
                with contextlib.suppress(RuntimeError):  # the event loop has ended
                    self._loop.call_soon_threadsafe(self._room.release)
