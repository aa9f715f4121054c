"""Running the command line in a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

RUN = "from contrafact._cli import main; main()"


async def start(
    *arguments: str, code: str = RUN, stdin: int = asyncio.subprocess.DEVNULL, **environment: str
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *arguments,
        stdin=stdin, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **environment},
    )  # fmt: skip


async def contrafact(*arguments: str, **more: Any) -> tuple[int, str, str]:
    process = await start(*arguments, **more)
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
