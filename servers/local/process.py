"""One supervised child process: started, watched for readiness, stopped with all that it started."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

from servers.local import shm

LAUNCHER = Path(__file__).with_name("launch.py")
LOG_LIMIT_BYTES = 32 * 1024 * 1024
LOG_KEPT_BYTES = 1024 * 1024
_GRACE_SECONDS = 0.3
_KILL_SECONDS = 10.0

_TROUBLE = re.compile(r"\b(error|fatal|panic|cannot|can't|failed|refused|no module)\b|Error\b|^E\d{4}", re.I)


class StackError(Exception):
    """Something of the stack failed; the message is one line for a person."""


@dataclass(frozen=True)
class Command:
    """How to run one server.

    ``ready`` is asked until it returns True; an exception means "not yet". ``death_signal`` is what the
    kernel sends when this process dies without stopping the stack.
    """

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    ready: Callable[[], Awaitable[bool]] | None = None
    ready_seconds: float = 30.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    death_signal: signal.Signals = signal.SIGKILL
    user: tuple[int, int] | None = None
    override: bool = False
    folder: Path | None = None
    after_exit: Callable[[], None] = field(default=lambda: None)


class Child:
    """A running ``Command`` and its log."""

    def __init__(self, command: Command, logs: Path) -> None:
        self.command = command
        self.name = command.name
        self.log = logs / f"{command.name}.log"
        self.restarts = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Process id; also its process group and session."""
        if self._process is None:
            raise StackError(f"{self.name} was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Spawn and wait until ready.

        Raises:
            StackError: it ended or was not ready in time; it is stopped then.
        """
        await self.spawn()
        try:
            await self._wait_ready()
        except BaseException:
            await asyncio.shield(self.stop())
            raise

    async def spawn(self) -> None:
        """Start the process with its output appended to a fresh log (the last run's is kept beside it)."""
        command = self.command
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))
        user = "-" if command.user is None else "{}:{}".format(*command.user)
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-I",
                    "-S",
                    str(LAUNCHER),
                    str(os.getpid()),
                    str(int(command.death_signal)),
                ),
                *(user, "1" if command.override else "0", *command.arguments),
                env=dict(command.environment),
                cwd=command.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)

    async def _wait_ready(self) -> None:
        deadline = time.monotonic() + self.command.ready_seconds
        while True:
            if not self.running:
                raise StackError(f"{self.name} failed to start: {self.describe_exit()}")
            if self.command.ready is None:
                return
            with suppress(Exception):
                if await self.command.ready():
                    return
            if time.monotonic() > deadline:
                line = f"{self.name} was not ready after {self.command.ready_seconds:g} s: {self.last_line()}"
                raise StackError(f"{line} (log: {self.log})")
            await asyncio.sleep(0.03)

    async def exited(self) -> int:
        """Wait for the end; the exit status, negative for a signal."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> None:
        """Ask it to stop, then insist; afterwards nothing that it started runs."""
        if self._process is None:
            return
        if self.running:
            with suppress(ProcessLookupError):
                self._process.send_signal(self.command.stop_signal)
            try:
                await asyncio.wait_for(self._process.wait(), self.command.stop_seconds)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
        await self.sweep()

    async def sweep(self) -> None:
        """End what the ended process left running, then let the command tidy its files."""
        assert self._process is not None
        await asyncio.to_thread(end_group, self._process.pid)
        shm.remove_of_process(self._process.pid)
        self.command.after_exit()

    def describe_exit(self) -> str:
        """How it ended, its last meaningful line and where to read more, on one line."""
        status = self._process.returncode if self._process else None
        if status is not None and status < 0:
            how = f"killed by {signal.Signals(-status).name}"
        else:
            how = f"exit status {status}"
        return f"{how}: {self.last_line()} (log: {self.log})"

    def last_line(self) -> str:
        """The last line of the log that tells of trouble, else the last line."""
        lines = [line.strip() for line in tail(self.log).splitlines() if line.strip()]
        for line in [line for line in reversed(lines) if _TROUBLE.search(line)] + lines[::-1]:
            return _plain(line)[:300]
        return "it wrote nothing"

    def trim_log(self) -> None:
        """Keep the log bounded: move its end aside and empty it. The writer appends, so it goes on at 0."""
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT_BYTES:
            self.log.with_suffix(".log.1").write_text(tail(self.log, LOG_KEPT_BYTES))
            os.truncate(self.log, 0)


def tail(path: Path, size: int = 16384) -> str:
    """The last ``size`` bytes of a file as text; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def _plain(line: str) -> str:
    """What a structured log line says."""
    with suppress(ValueError, AttributeError):
        event = json.loads(line)
        return " ".join(str(event[key]) for key in ("event", "error", "exception") if event.get(key)) or line
    return line


def group_members(leader: int) -> list[psutil.Process]:
    """Processes that an ended group leader left behind, none while a process of that id exists.

    The kernel does not give a pid to a new process while a group of that id lives, so a pid that is in use
    is either the leader itself or a stranger's, and then the group is gone.
    """
    if psutil.pid_exists(leader):
        return []
    members = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.Error):
            # A zombie has ended; some containers' init takes seconds to bury it.
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


def end_group(leader: int) -> None:
    """Kill what an ended group leader left behind (Triton's Python stubs outlive it by seconds).

    First a moment to end by itself: Python's resource tracker then removes its dead parent's shared memory.
    """
    begin = time.monotonic()
    while (members := group_members(leader)) and time.monotonic() < begin + _KILL_SECONDS:
        if time.monotonic() > begin + _GRACE_SECONDS:
            for process in members:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        time.sleep(0.02)
