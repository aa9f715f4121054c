"""The stack for code without an event loop: it lives in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from servers.local.stack import Stack


@contextmanager
def running_stack(folder: Path | str, **options: Any) -> Iterator[Stack]:
    """A started ``Stack`` with these options, stopped on leaving.

    Its ``environment``, ``api_address`` and ``processes`` may be read from any thread; its coroutines
    belong to its own.

    Raises:
        StackError: something failed to start; everything is stopped again.
    """
    stack = Stack(folder, **options)
    loop = asyncio.new_event_loop()
    # The kernel ends the children when the thread that spawned them ends (see launch.py), so this one stays.
    thread = threading.Thread(target=loop.run_forever, name="contrafact-stack", daemon=True)
    thread.start()
    try:
        starting = asyncio.run_coroutine_threadsafe(stack.start(), loop)
        try:
            starting.result()
            yield stack
        finally:
            starting.cancel()
            asyncio.run_coroutine_threadsafe(stack.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
