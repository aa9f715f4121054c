"""The embedded stack: which servers, in which order, for how long.

Stores and Triton start together; the database is migrated as soon as it answers; then come the engines, the API
and the workers. They stop the other way round. A server that dies is started again, on the same port and data, a
bounded number of times.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from servers.local import contrafact, postgres, s3, triton, valkey
from servers.local.folder import DataFolder
from servers.local.ports import free_port, is_free
from servers.local.process import Child, Command, StackError
from servers.platform.settings import Settings
from servers.platform.tasks import together

STORES = frozenset({"postgres", "valkey", "s3"})
BACKENDS = STORES | {"triton"}
VOICE_WEIGHTS = ("contentvec", "rmvpe")  # what all voices share
RESTARTS = 5
RESTART_WINDOW_SECONDS = 300.0
RESTART_DELAY_SECONDS = 8.0  # the longest; the first is a quarter of a second, and it doubles
_TRIM_SECONDS = 30.0

_log = logging.getLogger("contrafact.local")


class Stack:
    """Every server Contrafact needs, as child processes. An asynchronous context manager.

    Args:
        folder: Data, logs and credentials; created if there is none. One stack at a time may use it.
        only: Names from ``BACKENDS``: start these alone, and no Contrafact server.
        servers: Whether to start the API and the workers; False leaves all of ``BACKENDS``.
        workers: How many worker processes.
        api_port: Port of the API; 0: any free one.
        model_repository: Triton's models; None: those in this source tree.
        weights: Whether to fetch the model's weights in the background if the cache lacks them.
        triton_threads: CPU threads of each model's numeric libraries; None: they choose.
        gpu: Whether the models run on an NVIDIA GPU.
        environment: More settings (``CONTRAFACT_…``) for every child.
        detours: Given how the backends and the engines are reached, the settings by which Contrafact's servers are to
            reach them instead: a proxy, say.
        restarts: How often within five minutes a server that died is started again.
        restart_delay: Longest wait before that, in seconds.
        report: Called with one line for each thing worth telling a person.

    Attributes:
        environment: The settings by which any process reaches this stack.
        processes: The children by name, each with ``pid``, ``log`` and ``running``.
        started_seconds: How long the start took.

    Raises (on entering):
        StackError: something failed to start; everything is stopped again. The message is one line.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        only: Collection[str] | None = None,
        servers: bool = True,
        workers: int = 1,
        api_port: int = 0,
        model_repository: Path | str | None = None,
        weights: bool = True,
        triton_threads: int | None = None,
        gpu: bool = False,
        environment: Mapping[str, str] | None = None,
        detours: Callable[[Mapping[str, str]], Mapping[str, str]] = lambda environment: {},
        restarts: int = RESTARTS,
        restart_delay: float = RESTART_DELAY_SECONDS,
        report: Callable[[str], None] = _log.info,
    ) -> None:
        if unknown := set(only or ()) - BACKENDS:
            raise StackError(f"unknown: {', '.join(sorted(unknown))} (there are: {', '.join(sorted(BACKENDS))})")
        self.environment: dict[str, str] = {}
        self.processes: dict[str, Child] = {}
        self.started_seconds = 0.0
        self._folder = DataFolder(Path(folder))
        self._backends = BACKENDS if only is None else frozenset(only)
        self._servers = servers and only is None
        self._workers = workers
        self._api_port = api_port
        self._repository = Path(model_repository or contrafact.ROOT / "model_repository").absolute()
        self._weights = weights
        self._threads = triton_threads
        self._gpu = gpu
        self._extra = dict(environment or {})
        self._detours = detours
        self._restarts = restarts
        self._restart_delay = restart_delay
        self._report = report
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    @property
    def folder(self) -> Path:
        """The data folder."""
        return self._folder.path

    @property
    def api_address(self) -> str:
        """``host:port`` of the API."""
        return "{CONTRAFACT_API_HOST}:{CONTRAFACT_API_PORT}".format(**self.environment)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything and return when it is ready."""
        begin = time.monotonic()
        self._failed = asyncio.get_running_loop().create_future()
        # In this thread, although it may wait for a killed stack's processes: nothing else runs yet.
        self._folder.open()
        try:
            await self._start_all()
        except BaseException:
            await self.stop()
            raise
        self.started_seconds = time.monotonic() - begin

    async def _start_all(self) -> None:
        if "s3" in self._backends:  # before Triton starts, whose models fetch from it
            self.environment |= self._s3_settings()
        await together(*(self._start_backend(name) for name in sorted(self._backends)))
        if self._servers:
            port = self._api_port or free_port()
            if not is_free(port):
                raise StackError(f"api cannot start: port {port} is in use; choose another with --api-port")
            self.environment |= {"CONTRAFACT_API_HOST": "127.0.0.1", "CONTRAFACT_API_PORT": str(port)}
            for name in contrafact.ENGINES:
                port, prefix = free_port(), f"CONTRAFACT_{name.upper()}"
                self.environment |= {f"{prefix}_PORT": str(port), f"{prefix}_URL": f"127.0.0.1:{port}"}
            await self._start_servers()
        self._tasks.append(asyncio.create_task(self._trim_logs()))

    async def _start_backend(self, name: str) -> None:
        """Start one of the servers that are not ours and write down how it is reached."""
        prepare = {
            "postgres": self._prepare_postgres,
            "valkey": self._prepare_valkey,
            "s3": self._prepare_s3,
            "triton": self._prepare_triton,
        }
        command, reached = await prepare[name]()
        await self._launch(command)
        self.environment |= reached

    async def _prepare_postgres(self) -> tuple[Command, dict[str, str]]:
        sockets = self._folder.sockets()
        data = self.folder / "postgres"
        command = await postgres.prepare(data, sockets, self._folder.logs, self._child_environment())
        return command, {"CONTRAFACT_DATABASE_URL": postgres.url(sockets)}

    async def _prepare_valkey(self) -> tuple[Command, dict[str, str]]:
        port, password = free_port(), self._folder.credentials().redis_password
        configuration = self._folder.run / "valkey.conf"
        command = valkey.prepare(self.folder / "valkey", configuration, port, password, self._child_environment())
        return command, {"CONTRAFACT_REDIS_URL": valkey.url(port, password)}

    def _s3_settings(self) -> dict[str, str]:
        made = self._folder.credentials()
        return {
            "CONTRAFACT_S3_ENDPOINT": f"http://127.0.0.1:{free_port()}",
            "CONTRAFACT_S3_ACCESS_KEY": made.s3_access_key,
            "CONTRAFACT_S3_SECRET_KEY": made.s3_secret_key,
            "CONTRAFACT_S3_BUCKET": s3.BUCKET,
        }

    async def _prepare_s3(self) -> tuple[Command, dict[str, str]]:
        port = int(self.environment["CONTRAFACT_S3_ENDPOINT"].rpartition(":")[2])
        made = self._folder.credentials()
        keys = made.s3_access_key, made.s3_secret_key
        data, environment = self.folder / "s3", self._child_environment()
        # In a thread: it walks through all objects.
        return await asyncio.to_thread(s3.prepare, data, port, *keys, environment), {}

    async def _prepare_triton(self) -> tuple[Command, dict[str, str]]:
        grpc_port, metrics_port = free_port(), free_port()
        # Weights matter to the model's process first, so it is told where they are even if none are fetched.
        self.environment["CONTRAFACT_WEIGHTS_DIR"] = str(contrafact.weights_folder())
        environment = self._child_environment()
        environment.setdefault("CONTRAFACT_RVC_VOICES", str(self.folder / "voices"))
        command = triton.prepare(
            self.folder / "triton",
            repository=self._repository,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            prefix=self._folder.shm_prefix,
            threads=self._threads,
            gpu=self._gpu,
            environment=environment,
        )
        return command, {"CONTRAFACT_TRITON_URL": f"127.0.0.1:{grpc_port}"}

    async def _start_servers(self) -> None:
        # Each server takes a free port for its metrics, and says so in its log.
        environment = {"CONTRAFACT_METRICS_PORT": "0", **self._child_environment(), **self._detours(self.environment)}
        if self._gpu:  # enough for two of its batches
            environment.setdefault("CONTRAFACT_SEGMENTS_IN_FLIGHT", "16")
        usual = Settings.model_fields["drain_seconds"].default
        drain = float(environment.get("CONTRAFACT_DRAIN_SECONDS", usual))
        migrate = Child(contrafact.migrate(environment), self._folder.logs)
        await self._once(migrate)
        if self._weights:
            own = ["embedder"] if environment.get("CONTRAFACT_EMBEDDER_SHA256") else []
            names = (environment.get("CONTRAFACT_MODEL", "htdemucs"), *VOICE_WEIGHTS, *own)
            fetch = Child(contrafact.weights(environment, names), self._folder.logs)
            self.processes[fetch.name] = fetch
            self._tasks.append(asyncio.create_task(self._fetch_weights(fetch)))
        workers = ["worker"] if self._workers == 1 else [f"worker-{n + 1}" for n in range(self._workers)]
        engines = {name: f"CONTRAFACT_{name.upper()}_URL" for name in contrafact.ENGINES}
        commands = [
            contrafact.api(environment, self.api_address, drain),
            *(contrafact.engine(name, environment, self.environment[url], drain) for name, url in engines.items()),
            *(contrafact.worker(environment, name, self._folder.logs, drain) for name in workers),
        ]
        await together(*(self._launch(command) for command in commands))

    def _child_environment(self) -> dict[str, str]:
        return {**os.environ, **self._extra, **self.environment}

    async def _launch(self, command: Command) -> None:
        begin = time.monotonic()
        child = Child(command, self._folder.logs)
        self.processes[child.name] = child
        await child.start()
        self._remember()
        self._report(f"{child.name}: ready in {time.monotonic() - begin:.1f} s (pid {child.pid})")
        self._tasks.append(asyncio.create_task(self._supervise(child)))

    async def _once(self, child: Child) -> None:
        """Run a one-shot to its end."""
        try:
            await child.spawn()
            if await child.exited():
                raise StackError(f"{child.name} failed: {child.describe_exit()}")
        finally:
            await asyncio.shield(child.stop())

    async def _fetch_weights(self, child: Child) -> None:
        try:
            await self._once(child)
        except StackError as error:
            self._report(f"{error}; the stack runs on without")

    async def _supervise(self, child: Child) -> None:
        """Start the child again when it ends unasked, until it has done so too often."""
        ends: list[float] = []
        while True:
            await child.exited()
            if self._stopping is not None:
                return
            problem = f"{child.name} ended: {child.describe_exit()}"
            while True:
                now = time.monotonic()
                ends = [end for end in ends if end > now - RESTART_WINDOW_SECONDS] + [now]
                if len(ends) > self._restarts:
                    return self._fail(f"{problem}; given up after {self._restarts} restarts")
                delay = min(0.25 * 2.0 ** min(len(ends) - 1, 30), self._restart_delay)
                self._report(f"{problem}; starting it again in {delay:g} s")
                await child.sweep()
                await asyncio.sleep(delay)
                child.restarts += 1
                try:
                    await child.start()
                    break
                except StackError as error:
                    problem = str(error)
            self._remember()
            self._report(f"{child.name}: ready again (pid {child.pid})")

    def _remember(self) -> None:
        self._folder.remember({name: child.pid for name, child in self.processes.items() if child.running})

    def _fail(self, message: str) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(StackError(message))

    async def wait(self) -> None:
        """Wait until the stack fails.

        Raises:
            StackError: a server died more often than it is worth restarting.
        """
        assert self._failed is not None
        await asyncio.shield(self._failed)

    async def _trim_logs(self) -> None:
        while True:
            await asyncio.sleep(_TRIM_SECONDS)
            for child in self.processes.values():
                await asyncio.to_thread(child.trim_log)

    async def stop(self) -> None:
        """Stop everything, ours first, and leave nothing but data and logs. May be asked repeatedly."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop_all())
        # Cancelling the caller (a second Ctrl-C) must not leave servers behind.
        await asyncio.shield(self._stopping)

    async def _stop_all(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        ours = [child for name, child in self.processes.items() if name not in BACKENDS]
        for group in (ours, *_backend_groups(self.processes)):
            await asyncio.gather(*(child.stop() for child in group), return_exceptions=True)
        with suppress(OSError):
            self._folder.close()
        if self._failed is not None and not self._failed.done():
            self._failed.cancel()


def _backend_groups(processes: Mapping[str, Child]) -> list[list[Child]]:
    """Triton, then the stores."""
    return [[child for name, child in processes.items() if name in names] for names in (BACKENDS - STORES, STORES)]
