"""A whole system under load, to which things are done, and the record of how it took them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import asyncpg

from servers.local import Stack
from servers.storage.database import connect
from servers.storage.objects import ObjectStore
from tests.conftest import FAKE_MODELS, stack_settings
from tests.fault.faults import MODELS, Disk, Fault, System, model_ready
from tests.fault.leftovers import duplicates, leaks, orphans, remains
from tests.fault.load import Load
from tests.fault.proxy import Network
from tests.fault.strikes import PATIENCE_SECONDS, Strike, eventually
from tests.orchestrator.voice_files import shelve

LEASE_SECONDS = 4
_POLL_SECONDS = 0.2
_SETTLING_SECONDS = 0.05
_GAINS = (0.5, 0.8, 1.0)

Database: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class Chaos:
    """A stack with two workers, fake models and callers, while used as a context manager.

    Attributes:
        seed: Decides what callers ask for and where faults strike.
        strikes: All that was done, in order.
        retries: Attempts that did not end their job: when that was known (seconds since the epoch), and why they ended.
        duplicated: What was stored or done twice, and when it was found.
        orphaned: Objects that no row names and that were not removed.
        leaked: Processes, shared memory and files of servers that are gone.
        told: What the stack reported.
        load: The callers, and what they found wrong.
        system: What faults are done to.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed = seed
        self.strikes: list[Strike] = []
        self.retries: list[tuple[float, str]] = []
        self.duplicated: list[tuple[float, str]] = []
        self.orphaned: list[tuple[float, str]] = []
        self.leaked: list[tuple[float, str]] = []
        self.told: list[str] = []
        self._folder = folder
        self._random = Random(seed)
        self._network = Network()
        self._temporary = folder / "temporary"
        self._seen: dict[uuid.UUID, tuple[Any, ...]] = {}
        self._pids: set[int] = set()
        self._healing: list[asyncio.Task[None]] = []
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Chaos:
        async with AsyncExitStack() as exit_stack:
            await self._start(exit_stack)
            self._exit = exit_stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        for healing in self._healing:
            healing.cancel()
        await asyncio.gather(*self._healing, return_exceptions=True)
        # Asked to stop, it takes eight seconds once a model of its has died.
        os.kill(self.stack.processes["triton"].pid, signal.SIGKILL)
        await self._exit.aclose()
        self.leaked += [(time.time(), what) for what in remains(self._temporary, self._pids, self._prefix)]

    async def _start(self, exit_stack: AsyncExitStack) -> None:
        for folder in (self._temporary, self._folder / "callers"):
            folder.mkdir()
        disk = Disk(self._folder / "stack" / "s3")
        exit_stack.callback(disk.unmount)
        mounted = disk.mount()
        exit_stack.push_async_callback(self._network.stop)
        await self._network.start()
        self.stack = await exit_stack.enter_async_context(self._stack())
        self.system = System(self.stack, self.told, self._network, self._random, disk if mounted else None)
        self._settings = stack_settings(self.stack)
        self._objects = ObjectStore(self._settings)
        exit_stack.push_async_callback(self._objects.close)
        callers = Load(self.stack.api_address, await self._voices(), self._folder / "callers", self._random)
        self.load = await exit_stack.enter_async_context(callers)
        exit_stack.push_async_callback(_ended, asyncio.create_task(self._watch()))
        await eventually(self._busy)

    async def _busy(self) -> bool:
        """Whether both models are loaded and jobs have ended."""
        loaded = [await model_ready(self.stack, model) for model in MODELS]
        return all(loaded) and any(asked.job for asked in self.load.asked)

    @property
    def _prefix(self) -> str:
        return self.stack._folder.shm_prefix

    def _stack(self) -> Stack:
        settings = {
            "FAKE_DELAY": "0.08",
            "FAKE_RVC_DELAY": "0.05",
            "WORKER_CONCURRENCY": "2",
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "DRAIN_SECONDS": "3",
            "CHECKPOINT_SECONDS": "8",
            "TIDY_SECONDS": "5",
            "ORPHANS_SECONDS": "10",
            "ORPHAN_ORIGINAL_DAYS": "0",
            "TEMPORARY_FOLDER": str(self._temporary),
        }
        return Stack(
            self._folder / "stack",
            workers=2,
            model_repository=FAKE_MODELS,
            weights=False,
            environment={f"CONTRAFACT_{name}": value for name, value in settings.items()},
            detours=self._network.detours,
            restarts=1_000_000,
            restart_delay=0.25,
            report=self.told.append,
        )

    async def _voices(self) -> dict[str, float]:
        pool = await connect(self._settings)
        try:
            return {f"voices/{(await shelve(pool, self._objects, gain=gain))['id']}": gain for gain in _GAINS}
        finally:
            await pool.close()

    async def strike(self, fault: Fault) -> Strike:
        """Do it; `recovered` or `calm` wait until what it struck is well again."""
        self._pids |= {child.pid for child in self.stack.processes.values()}
        at = time.time()
        striking = asyncio.create_task(fault.strike(self.system))
        await asyncio.sleep(_SETTLING_SECONDS)
        with contextlib.suppress(Exception):  # what was stored before it struck is no progress
            async with self._database() as database:
                self._look(await database.fetch(_UNFINISHED))
        running = {job for job, seen in self._seen.items() if seen[0] == "RUNNING"}
        strike = Strike(fault.kind, at, len(self._seen), running)
        self.strikes.append(strike)
        try:
            well = await striking
        except TimeoutError:
            self.load.lost.append((at, f"{fault.kind}: not there to be struck"))
        else:
            self._healing.append(asyncio.create_task(self._healed(strike, well)))
        return strike

    async def _healed(self, strike: Strike, well: Callable[[], Awaitable[bool]]) -> None:
        ended = time.time()
        try:
            await eventually(well)
            strike.healthy = time.time() - ended
        except TimeoutError:
            self.load.lost.append((strike.at, f"{strike.kind}: not well after {PATIENCE_SECONDS:g} s"))

    async def recovered(self, strike: Strike) -> None:
        """Wait until what was struck is well, and all jobs that ran then have gone on."""

        async def went_on() -> bool:
            return strike.stall is not None

        await asyncio.gather(*self._healing)
        await eventually(went_on)

    def keep_logs(self, folder: Path) -> None:
        """Copy what the servers have written, of each the last run and the one before."""
        shutil.copytree(self.stack.folder / "logs", folder, dirs_exist_ok=True)

    async def _watch(self) -> None:
        """See jobs go on, in the database, for as long as this runs."""
        while True:
            with contextlib.suppress(Exception):  # whatever it is, the next look must come
                async with self._database() as database:
                    while True:
                        self._look(await database.fetch(_UNFINISHED))
                        await asyncio.sleep(_POLL_SECONDS)
            await asyncio.sleep(_POLL_SECONDS)

    def _look(self, rows: list[asyncpg.Record]) -> None:
        now = {row["id"]: tuple(row)[1:] for row in rows}
        moved = {job for job in self._seen.keys() | now.keys() if self._seen.get(job) != now.get(job)}
        self._seen = now
        for strike in self.strikes:
            if strike.stall is None:
                for job in moved:
                    strike.moved(job)

    @asynccontextmanager
    async def _database(self) -> AsyncIterator[Database]:
        """A connection that takes no detour."""
        connection = await asyncpg.connect(self._settings.database_url, timeout=5, command_timeout=10)
        try:
            yield connection
        finally:
            connection.terminate()

    async def calm(self) -> None:
        """Let all callers finish, have everything tidied, look for what is left, and delete what was made."""
        await asyncio.gather(*self._healing)
        await self.load.pause()
        async with self._database() as database:
            await self._tidied(database)
            self.duplicated += [(time.time(), what) for what in await duplicates(database)]
            await self._all_ended(database)
            await self._remember_retries(database)
        await self.load.clear()
        async with self._database() as database:
            await self._tidied(database)
        self.load.resume()

    async def _tidied(self, database: Database) -> None:
        """Wait until the system has tidied, which it does every few seconds, and note what is left after that."""
        left: tuple[list[str], list[str]] = ([], [])
        leaked: list[str] = []

        async def nothing_is_left() -> bool:
            nonlocal left, leaked
            left = await orphans(database, self._objects)
            leaked = await asyncio.to_thread(leaks, self.stack, self._temporary, self._pids)
            return not (left[0] or left[1] or leaked)

        with contextlib.suppress(TimeoutError):
            await eventually(nothing_is_left, pause=1.0)
        now = time.time()
        self.orphaned += [(now, what) for what in left[0]]
        for what in left[1]:
            self._lost(f"no object: {what}")
        self.leaked += [(now, what) for what in leaked]

    async def _all_ended(self, database: Database) -> None:
        """Every job that was accepted is there, ended as its caller was told, and has what he was given."""
        rows = {row["id"]: row for row in await database.fetch(_ALL_JOBS)}
        for asked in self.load.asked:
            row, told = rows.get(asked.id), asked.ended
            if row is None or told not in (row["state"], None):  # who heard of no end has told why
                self._lost(f"{asked.name} is {row and row['state']}, its caller was told {told}")
            elif told == "SUCCEEDED" and asked.job and row["kept"] and row["results"] != len(asked.job.artifacts):
                self._lost(f"{asked.name} has {row['results']} results and had {len(asked.job.artifacts)}")
        for job, row in rows.items():
            if row["state"] in ("QUEUED", "RUNNING"):
                self._lost(f"jobs/{job} has not ended")

    def _lost(self, what: str) -> None:
        self.load.lost.append((time.time(), what))

    async def _remember_retries(self, database: Database) -> None:
        rows = await database.fetch(
            """SELECT extract(epoch FROM (ended ->> 'ended')::timestamptz)::float8 AS at,
                      concat_ws(' ', ended ->> 'outcome', ended ->> 'reason') AS why
               FROM jobs, jsonb_array_elements(attempts) WITH ORDINALITY AS those (ended, number)
               WHERE number < jsonb_array_length(attempts) ORDER BY 1"""
        )
        self.retries = [(row["at"], row["why"]) for row in rows]


# Of a track that was deleted there are no results.
_ALL_JOBS = """SELECT id, state, track_id IS NOT NULL AS kept,
                      (SELECT count(*) FROM job_stems WHERE job_id = id)
                      + (SELECT count(*) FROM job_covers WHERE job_id = id) AS results FROM jobs"""
_UNFINISHED = """SELECT id, state, attempt, fraction, (SELECT count(*) FROM live_pieces WHERE job_id = jobs.id)
                 FROM jobs WHERE state IN ('QUEUED', 'RUNNING')"""


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
