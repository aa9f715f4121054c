"""Ends a process whose event loop is stuck: whoever supervises it starts another."""

from __future__ import annotations

import asyncio
import faulthandler

from servers.platform.tasks import Background

_BEATS = 4  # in the time that is allowed


class Watchdog(Background):
    """While it is used, an event loop that runs nothing for ``seconds`` (0: for ever) ends its process.

    What every thread was doing is written to stderr before. A thread of the interpreter's own sees to it, which needs
    neither the loop nor the GIL. Nothing is cleaned up, as after SIGKILL; exit status 1.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def _work(self) -> None:
        if not self._seconds:
            return
        try:
            while True:
                faulthandler.dump_traceback_later(self._seconds, exit=True)
                await asyncio.sleep(self._seconds / _BEATS)
        finally:
            faulthandler.cancel_dump_traceback_later()
