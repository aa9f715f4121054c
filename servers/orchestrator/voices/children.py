"""Programs that read strangers' files for us, each in a process that a file may crash, bloat or hang without harm."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from servers.platform import telemetry

_ROOT = Path(__file__).resolve().parents[3]
# No secrets of the server reach a child, and libraries do not spend its limits on threads.
_ENVIRONMENT = {
    "PYTHONPATH": str(_ROOT),
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "LC_ALL": "C.UTF-8",
}
_ANSWER_BYTES = 65_536
_COMPLAINT_BYTES = 4096


class ChildTimeout(Exception):
    """The program took too long."""


class ChildFailed(Exception):
    """The program did not answer: the file has crashed it, or used up what it may use."""


async def ask(module: str, arguments: Sequence[str], timeout: float) -> Any:
    """The JSON that ``python -m module arguments`` prints.

    The program limits its own rights. Neither it nor what it started lives when this returns, raises or is cancelled.

    Raises:
        ChildTimeout: no answer within ``timeout`` seconds.
        ChildFailed: another exit status than 0, or no JSON.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-s", "-B", "-m", module, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_ENVIRONMENT,
        start_new_session=True,
        cwd="/",
    )
    try:
        async with asyncio.timeout(timeout):
            assert child.stdout is not None
            assert child.stderr is not None
            answer, complaint = await asyncio.gather(_beginning(child.stdout), _end(child.stderr))
            status = await child.wait()
    except TimeoutError:
        raise ChildTimeout(module) from None
    finally:
        await _kill(child)
    try:
        if status == 0:
            return json.loads(answer)
    except (ValueError, RecursionError):
        pass
    lines = complaint.decode(errors="replace").split("\n")
    telemetry.log().warning(
        "child failed", module=module, status=status, last=next(filter(None, lines[::-1]), "")[:200]
    )
    raise ChildFailed(module)


async def _beginning(stream: asyncio.StreamReader) -> bytes:
    """What is said first: a child that a file has taken over could talk without end."""
    answer = b""
    while data := await stream.read(_ANSWER_BYTES):
        answer = (answer + data)[:_ANSWER_BYTES]
    return answer


async def _end(stream: asyncio.StreamReader) -> bytes:
    """What is said last."""
    complaint = b""
    while data := await stream.read(_ANSWER_BYTES):
        complaint = (complaint + data)[-_COMPLAINT_BYTES:]
    return complaint


async def _kill(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # also of a child that has ended: others may be left of its session
        os.killpg(child.pid, signal.SIGKILL)
    # Reaping a killed process takes milliseconds; a second cancellation must not leave a zombie.
    await asyncio.shield(child.wait())
