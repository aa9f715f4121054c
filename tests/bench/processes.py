"""What the processes of a stack take."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import psutil

from servers.local import Stack

_MODEL = re.compile(r"/([a-z]+)/1/model\.py$")


def stubs(stack: Stack) -> dict[str, int]:
    """Ids of the processes of the models that are loaded, by model."""
    found = {}
    for child in psutil.Process(stack.processes["triton"].pid).children(recursive=True):
        with suppress(psutil.Error):
            for word in child.cmdline():
                if match := _MODEL.search(word):
                    found[match[1]] = child.pid
    return found


def cpu_seconds(stack: Stack) -> dict[str, float]:
    """CPU seconds since its start of each process that lives: the stack's own by name, the models' by theirs."""
    running = {name: child.pid for name, child in stack.processes.items() if child.running and child.pid}
    spent = {}
    for name, pid in {**running, **stubs(stack)}.items():
        with suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            spent[name] = times.user + times.system
    return spent


def peak_mib(pid: int) -> float:
    """Peak resident memory of a process since its start, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def rss_mib(pid: int) -> float:
    """Resident memory of a process now, in MiB."""
    return float(psutil.Process(pid).memory_info().rss / 2**20)
