"""An event loop for programs without one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any, TypeVar

from contrafact._errors import client_closed

T = TypeVar("T")

INSIDE = "a callback in the client's own thread cannot call the client"


class Loop:
    """An event loop in a background thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stopped = False
        # Nothing may be given to the loop after its stop; reentrant, for a generator may be collected inside.
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._turn, name="contrafact", daemon=True)
        self._thread.start()

    def _turn(self) -> None:
        """Run until the stop, then cancel what is left, so that nobody waits for it for ever."""
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop().run_forever()

    @property
    def running(self) -> bool:
        """Whether work can be given to it."""
        return not self._stopped

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; an interrupted caller cancels it.

        Raises:
            RuntimeError: this is the loop's own thread, where waiting would never end.
            Unavailable: the loop has been stopped, or is stopped meanwhile.
        """
        with self._lock:
            inside = threading.current_thread() is self._thread
            if inside or self._stopped:
                work.close()
                raise RuntimeError(INSIDE) if inside else client_closed()
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise client_closed() from None
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
