"""What is done to a running system, each fault one small class. They are told apart by their ``kind``."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Protocol

import psutil
from redis.asyncio import Redis
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from servers.local import Stack
from servers.local.contrafact import ENGINES
from servers.local.process import Child
from tests.fault.proxy import Network, Proxy

MODELS = ("htdemucs", "rvc")
PROCESSES = ("worker", "api", "triton", *MODELS, *ENGINES, "valkey", "postgres", "s3")
STOPPED = ("worker", "valkey", "s3", *ENGINES, "api")
PROXIED = ("valkey", "s3", "postgres", "triton", *ENGINES)
TROUBLES = ("cut", "refuse", "slow", "throttle", "stall")
_AWAY_SECONDS = 120.0


@dataclass
class System:
    """What faults are done to.

    Attributes:
        told: What the stack has reported, line by line.
        random: Chooses where a fault may strike one of several.
        disk: The small file system that S3 stores in; None: it could not be mounted.
    """

    stack: Stack
    told: list[str]
    network: Network
    random: Random
    disk: Disk | None

    def name_of(self, what: str) -> str:
        """A child of the stack: workers are chosen from."""
        names = [name for name in self.stack.processes if name == what or name.startswith(f"{what}-")]
        return self.random.choice(names)


def model_process(stack: Stack, model: str) -> int | None:
    """The process of one of Triton's models, if it runs."""
    with suppress(psutil.Error):
        for child in psutil.Process(stack.processes["triton"].pid).children(recursive=True):
            with suppress(psutil.Error):
                if any(word.endswith(f"/{model}/1/model.py") for word in child.cmdline()):
                    return int(child.pid)
    return None


async def model_ready(stack: Stack, model: str) -> bool:
    """Whether a model is loaded and its process runs; Triton alone calls it ready without one."""
    async with InferenceServerClient(stack.environment["CONTRAFACT_TRITON_URL"]) as triton:
        with suppress(InferenceServerException):
            return model_process(stack, model) is not None and await triton.is_model_ready(model, client_timeout=2)
    return False


class Fault(Protocol):
    """One thing that goes wrong."""

    @property
    def kind(self) -> str:
        """What it is called in the table."""

    async def strike(self, system: System) -> Callable[[], Awaitable[bool]]:
        """Do it, and undo it where it lasts; return what tells whether the thing struck is well again."""


async def _well() -> bool:
    return True


@dataclass(frozen=True)
class Kill:
    """A process dies on the spot."""

    what: str

    @property
    def kind(self) -> str:
        return f"kill {self.what}"

    async def strike(self, system: System) -> Callable[[], Awaitable[bool]]:
        if self.what in MODELS:
            return await self._model(system)
        child = system.stack.processes[system.name_of(self.what)]
        await _until(partial(_runs, child))
        os.kill(old := child.pid, signal.SIGKILL)

        async def well() -> bool:
            return child.pid != old and f"{child.name}: ready again (pid {child.pid})" in system.told

        return well

    async def _model(self, system: System) -> Callable[[], Awaitable[bool]]:
        # Not while it is being loaded: Triton would wait for it for minutes (its stub-timeout-seconds).
        loaded = partial(model_ready, system.stack, self.what)
        await _until(loaded)
        old = model_process(system.stack, self.what)
        assert old is not None
        os.kill(old, signal.SIGKILL)

        async def well() -> bool:
            return model_process(system.stack, self.what) != old and await loaded()

        return well


@dataclass(frozen=True)
class Flush:
    """Redis forgets everything."""

    kind: str = "flush valkey"

    async def strike(self, system: System) -> Callable[[], Awaitable[bool]]:
        async with Redis.from_url(system.stack.environment["CONTRAFACT_REDIS_URL"], socket_timeout=5) as redis:
            await redis.flushall()
        return _well


@dataclass(frozen=True)
class Freeze:
    """A process stands still for a while, its connections open."""

    what: str
    seconds: float

    @property
    def kind(self) -> str:
        return f"stop {self.what}"

    async def strike(self, system: System) -> Callable[[], Awaitable[bool]]:
        child = system.stack.processes[system.name_of(self.what)]
        await _until(partial(_runs, child))
        pid = child.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        # A worker serves nobody who could ask.
        return _well if self.what == "worker" or child.command.ready is None else child.command.ready


@dataclass(frozen=True)
class FullDisk:
    """S3 can store nothing more for a while."""

    seconds: float
    kind: str = "full disk"

    async def strike(self, system: System) -> Callable[[], Awaitable[bool]]:
        assert system.disk is not None
        try:
            await asyncio.to_thread(system.disk.fill)
            await asyncio.sleep(self.seconds)
        finally:
            await asyncio.to_thread(system.disk.empty)
        return _well


@dataclass(frozen=True)
class BadNetwork:
    """Connections to a server are cut; or, for a while, refused, slowed, throttled, or nothing passes them."""

    trouble: str
    what: str
    seconds: float

    @property
    def kind(self) -> str:
        return f"{self.trouble} {self.what}"

    async def strike(self, system: System) -> Callable[[], Awaitable[bool]]:
        proxy = system.network.proxies[self.what]
        try:
            if self._begin(proxy):
                await asyncio.sleep(self.seconds)
        finally:
            proxy.heal()
        return _well

    def _begin(self, proxy: Proxy) -> bool:
        """Whether it lasts."""
        if self.trouble == "slow":
            proxy.delay = 0.2
        elif self.trouble == "throttle":
            proxy.rate = 200_000.0
        elif self.trouble == "stall":
            proxy.passing.clear()
        else:
            proxy.refuse = self.trouble == "refuse"
            proxy.cut()
        return self.trouble != "cut"


@dataclass
class Disk:
    """A file system of its own in memory, which takes of it only what is stored."""

    folder: Path
    size: str = "6g"
    mounted: bool = field(default=False, init=False)

    def mount(self) -> bool:
        """Mount it; False: this process may not."""
        self.folder.mkdir(parents=True)
        options = f"size={self.size},mode=700"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)], capture_output=True, check=False
        )
        self.mounted = done.returncode == 0
        return self.mounted

    def fill(self) -> None:
        """Leave no room: the size becomes what is used."""
        state = os.statvfs(self.folder)
        # A little is being written at this moment; a size below what is used is refused.
        self._resize(str((state.f_blocks - state.f_bfree) * state.f_frsize + 256 * 1024))

    def empty(self) -> None:
        """Have room again."""
        self._resize(self.size)

    def _resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], capture_output=True, check=True)

    def unmount(self) -> None:
        """Forget what was stored."""
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], capture_output=True, check=True)
            self.mounted = False


async def _runs(child: Child) -> bool:
    return child.running


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(_AWAY_SECONDS):
        while not await condition():
            await asyncio.sleep(0.05)


def deck(random: Random, *, disk: bool) -> list[Fault]:
    """Faults of a round in random order: twenty kills, two of each process, and nine others."""
    faults: list[Fault] = [Kill(what) for what in PROCESSES] * 2 + [Kill("worker"), Kill("worker"), Flush()]
    for what in random.sample(STOPPED, 2):
        faults.append(Freeze(what, random.choice((2.0, 2.0, 4.0, 4.0, 8.0, 8.0, 30.0))))
    for trouble in TROUBLES:
        faults.append(BadNetwork(trouble, random.choice(PROXIED), random.uniform(2.0, 4.0)))
    if disk:
        faults.append(FullDisk(random.uniform(2.0, 4.0)))
    random.shuffle(faults)
    return faults
