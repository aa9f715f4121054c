"""Running a command: exit codes, one line for an error, and what Ctrl-C does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

import typer

from contrafact._cli.output import printable

if TYPE_CHECKING:
    from contrafact._client import Client

FAILED, USAGE, UNREACHABLE, REFUSED, INTERRUPTED = 1, 2, 3, 4, 130

_REFUSALS = frozenset(
    {
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "OUT_OF_RANGE",
    }
)


def exit_code(error: Exception) -> int:
    """Return the exit code of an expected error."""
    from contrafact._errors import ContrafactError, JobCancelled, JobFailed

    if isinstance(error, ValueError):
        return USAGE
    if not isinstance(error, ContrafactError) or isinstance(error, JobFailed | JobCancelled):
        return FAILED
    if error.status in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
        return UNREACHABLE
    return REFUSED if error.status in _REFUSALS else FAILED


def describe(error: Exception) -> tuple[str, str]:
    """Return reason and message of an expected error."""
    from contrafact._errors import ContrafactError

    if isinstance(error, ContrafactError):
        return error.reason, str(error).removeprefix(f"{error.reason}: ")
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return "FILE_ERROR", f"{name}{error.strerror or error}"
    return "USAGE", " ".join(str(error).split())


def on_one_line(error: Exception) -> str:
    """Return what the user sees of an expected error."""
    return "contrafact: {}: {}".format(*map(printable, describe(error)))


@contextlib.contextmanager
def reporting_errors() -> Iterator[None]:
    """Turn expected errors into one line on standard error and an exit code."""
    try:
        yield
    except BrokenPipeError:  # whoever read our output has gone; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except (OSError, ValueError) as error:
        typer.echo(on_one_line(error), err=True)
        sys.exit(exit_code(error))
    except Exception as error:
        from contrafact._errors import ContrafactError

        if not isinstance(error, ContrafactError):
            raise
        typer.echo(on_one_line(error), err=True)
        sys.exit(exit_code(error))


def run(address: str | None, work: Callable[[Client], Awaitable[None]]) -> None:
    """Run asynchronous work with a connected client, and exit as the work ended.

    The first interrupt cancels the work, which may then put things in order on the server; the second one
    ends the process at once.
    """
    with reporting_errors():
        interrupted = asyncio.run(_interruptible(address, work))
    if interrupted:
        raise typer.Exit(interrupted)


async def _interruptible(address: str | None, work: Callable[[Client], Awaitable[None]]) -> int:
    """Return the exit code of the signal that ended the work; 0 when none did."""
    from contrafact._client import Client

    async def connected() -> None:
        async with Client(address) as client:
            await client.connect()
            await work(client)

    task = asyncio.ensure_future(connected())
    received: list[int] = []

    def interrupt(number: int) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: asyncio.run alone handles Ctrl-C
            loop.add_signal_handler(number, interrupt, number)
    try:
        await task
    except asyncio.CancelledError:
        if not received:
            raise
    return 128 + received[0] if received else 0
