"""An event loop for programs without one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Loop:
    """An event loop in a background thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stopped = False
        self._lock = threading.Lock()  # nothing may be given to the loop after its stop
        self._thread = threading.Thread(target=self._turn, name="contrafact", daemon=True)
        self._thread.start()

    def _turn(self) -> None:
        """Run until the stop, then cancel what is left, so that nobody waits for it for ever."""
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    @property
    def running(self) -> bool:
        """Whether work can be given to it."""
        return not self._stopped

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; an interrupted caller cancels it.

        Raises:
            RuntimeError: the loop has been stopped, or this is its own thread, where waiting would never end.
            concurrent.futures.CancelledError: the loop was stopped before the end.
        """
        with self._lock:
            if self._stopped or threading.current_thread() is self._thread:
                work.close()
                raise RuntimeError(
                    "the client is closed"
                    if self._stopped
                    else "a progress callback runs in the client's own thread, and cannot call the client"
                )
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """Iterate over an asynchronous generator, and close it however the iteration ends."""
        try:
            while True:
                try:
                    item = self.run(anext(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if self.running:
                self.run(items.aclose())

    def stop(self) -> None:
        """Cancel what is running, and end the loop and its thread."""
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
