"""What the client without an event loop does with voices and covers.

Arguments that are only handed on are ``**options`` here: those of the method that the docstring names.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncGenerator, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from contrafact._client import Client
from contrafact._send import ByteProgress
from contrafact._source import Uploadable
from contrafact._sync_job import SyncJob
from contrafact._sync_loop import Loop
from contrafact.v1.cover_pb2 import Cover
from contrafact.v1.track_pb2 import Track
from contrafact.v1.voice_pb2 import Voice
from contrafact.v1.voice_pool_pb2 import VoicePool

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from contrafact._live import LiveVoice


class SyncLiveVoice:
    """As :class:`contrafact.LiveVoice`, with a blocking iterator over blocks."""

    def __init__(self, loop: Loop, live: LiveVoice) -> None:
        self._loop = loop
        self._live = live

    @property
    def delay_seconds(self) -> float:
        """From the arrival of a sample to its departure, computing not counted."""
        return self._live.delay_seconds

    @property
    def block_frames(self) -> int:
        """Frames that the server converts at once."""
        return self._live.block_frames

    def __enter__(self) -> Self:
        self._loop.run(self._live.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._live.close())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        try:
            return self._loop.run(self._live.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None


async def _in_a_thread(blocks: Iterable[Buffer]) -> AsyncGenerator[Buffer, None]:
    """Yield the items of an iterable that may block.

    Its thread may be stuck in the iterable for good, so it is one that Python does not wait for at its exit.
    """
    wanted: queue.SimpleQueue[Future[Buffer | None] | None] = queue.SimpleQueue()
    iterator = iter(blocks)

    def take() -> None:
        while (answer := wanted.get()) is not None:
            try:
                answer.set_result(next(iterator, None))
            except BaseException as error:
                answer.set_exception(error)

    threading.Thread(target=take, name="contrafact-blocks", daemon=True).start()
    try:
        while True:
            answer: Future[Buffer | None] = Future()
            answer.set_running_or_notify_cancel()  # else a cancelled wait would cancel it under the thread
            wanted.put(answer)
            if (block := await asyncio.wrap_future(answer)) is None:
                return
            yield block
    finally:
        wanted.put(None)


class SyncVoiceMethods:
    """The methods of :class:`contrafact.SyncClient` that are about voices and covers."""

    _client: Client
    _loop: Loop

    def import_voice(
        self,
        weights: Uploadable,
        index: Uploadable | None = None,
        sample: Uploadable | None = None,
        *,
        display_name: str,
        **options: Any,
    ) -> Voice:
        """See :meth:`contrafact.Client.import_voice`."""
        work = self._client.import_voice(weights, index, sample, display_name=display_name, **options)
        return self._loop.run(work)

    def import_voice_objects(
        self, weights: str, index: str = "", *, display_name: str, **options: Any
    ) -> Voice:
        """See :meth:`contrafact.Client.import_voice_objects`."""
        work = self._client.import_voice_objects(weights, index, display_name=display_name, **options)
        return self._loop.run(work)

    def voice(self, name: str) -> Voice:
        """See :meth:`contrafact.Client.voice`."""
        return self._loop.run(self._client.voice(name))

    def voices(
        self,
        *,
        display_name_contains: str = "",
        tags: Iterable[str] = (),
        language: str = "",
        page_size: int = 0,
    ) -> Iterator[Voice]:
        """See :meth:`contrafact.Client.voices`."""
        return self._loop.iterate(
            self._client.voices(
                display_name_contains=display_name_contains, tags=tags, language=language, page_size=page_size
            )
        )

    def update_voice(self, voice: Voice | str, **options: Any) -> Voice:
        """See :meth:`contrafact.Client.update_voice`."""
        return self._loop.run(self._client.update_voice(voice, **options))

    def delete_voice(self, voice: Voice | str, *, cancel_jobs: bool = False) -> None:
        """See :meth:`contrafact.Client.delete_voice`."""
        self._loop.run(self._client.delete_voice(voice, cancel_jobs=cancel_jobs))

    def warm_voice(self, voice: Voice | str) -> Voice:
        """See :meth:`contrafact.Client.warm_voice`."""
        return self._loop.run(self._client.warm_voice(voice))

    def download_voice_sample(
        self, voice: Voice | str, path: str | os.PathLike[str], *, progress: ByteProgress | None = None
    ) -> Path:
        """See :meth:`contrafact.Client.download_voice_sample`."""
        return self._loop.run(self._client.download_voice_sample(voice, path, progress=progress))

    def voice_pool(self) -> VoicePool:
        """See :meth:`contrafact.Client.voice_pool`."""
        return self._loop.run(self._client.voice_pool())

    def update_voice_pool(self, **options: Any) -> VoicePool:
        """See :meth:`contrafact.Client.update_voice_pool`."""
        return self._loop.run(self._client.update_voice_pool(**options))

    def cover(self, track: Track | str, voice: Voice | str, **options: Any) -> SyncJob:
        """See :meth:`contrafact.Client.cover`."""
        return SyncJob(self._loop, self._loop.run(self._client.cover(track, voice, **options)))

    def cover_of(self, name: str) -> Cover:
        """See :meth:`contrafact.Client.cover_of`."""
        return self._loop.run(self._client.cover_of(name))

    def covers(
        self, *, track: Track | str = "", voice: Voice | str = "", page_size: int = 0
    ) -> Iterator[Cover]:
        """See :meth:`contrafact.Client.covers`."""
        return self._loop.iterate(self._client.covers(track=track, voice=voice, page_size=page_size))

    def delete_cover(self, cover: Cover | str) -> None:
        """See :meth:`contrafact.Client.delete_cover`."""
        self._loop.run(self._client.delete_cover(cover))

    def convert_voice(
        self, voice: Voice | str, blocks: Iterable[Buffer], sample_rate: int, **options: Any
    ) -> SyncLiveVoice:
        """See :meth:`contrafact.Client.convert_voice`; ``blocks`` are taken in a thread, and may block."""
        live = self._client.convert_voice(voice, _in_a_thread(blocks), sample_rate, **options)
        return SyncLiveVoice(self._loop, live)
