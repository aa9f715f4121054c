"""Periodic work among several workers, on a real PostgreSQL, S3 and Valkey."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from servers.local import running_stack
from servers.orchestrator.jobs.chores import Chore, Chores
from servers.orchestrator.jobs.queue import JobQueue, consume
from servers.orchestrator.jobs.reconcile import CLEAN_UPS, chores, dispatch
from servers.orchestrator.jobs.store import JobStore
from servers.platform.settings import Settings
from servers.platform.tasks import stopped
from servers.storage.migrate import migrate
from tests.conftest import stack_settings
from tests.orchestrator.library import Library, opened

HOUR, SOON = 3600.0, 0.05  # intervals


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """What workers need besides models."""
    with running_stack(tmp_path_factory.mktemp("stores"), only={"postgres", "s3", "valkey"}) as stack:
        settings = stack_settings(stack)
        migrate(settings.database_url)
        yield settings


@pytest.fixture
async def library(stores: Settings) -> AsyncIterator[Library]:
    """An empty library."""
    async with opened(stores) as library:
        yield library


class Diary:
    """How often each chore was begun."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()

    def chore(
        self,
        name: str,
        interval: float = HOUR,
        deadline: float = HOUR,
        then: Callable[[], Awaitable[Any]] | None = None,
    ) -> Chore:
        """A chore that is written down and then does ``then``."""

        async def work() -> Mapping[str, Any]:
            self.begun[name] += 1
            if then is not None:
                await then()
            return {"times": self.begun[name]}

        return Chore(name, interval, deadline, work)


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(100):
        while not happened():
            await asyncio.sleep(0.02)


async def done(library: Library, number: int) -> None:
    """Wait until so many chores have been done, and written down."""
    async with asyncio.timeout(100):
        while await library.pool.fetchval("SELECT count(ran_at) FROM chores") < number:
            await asyncio.sleep(0.02)


async def hang() -> None:
    await asyncio.Event().wait()


async def test_one_of_many_does_it(library: Library) -> None:
    diary = Diary()
    names = [f"chore {number}" for number in range(10)]
    for times in (1, 2, 3):
        async with AsyncExitStack() as workers:
            for worker in range(4):
                # Each ends with one of its own: then it will have looked at the others.
                own = diary.chore(f"{worker} of {times}")
                await workers.enter_async_context(Chores(library.pool, [*map(diary.chore, names), own]))
            # Also written down, or what is due next would be decided after this round.
            await done(library, len(names) + 4 * times)
        assert {diary.begun[name] for name in names} == {times}
        reports = await library.pool.fetch("SELECT report FROM chores WHERE name = ANY($1)", names)
        assert [row["report"] for row in reports] == [{"times": times}] * len(names)
        await library.pool.execute("UPDATE chores SET due_at = now(), ran_at = NULL WHERE name = ANY($1)", names)


async def test_one_that_raises_or_hangs_stops_no_other(library: Library) -> None:
    async def fail() -> None:
        raise ValueError("no such luck")

    diary = Diary()
    all_of_them = [
        diary.chore("raises", SOON, then=fail),
        diary.chore("hangs", SOON, 0.1, then=hang),
        diary.chore("works", SOON),
    ]
    async with Chores(library.pool, all_of_them):
        await until(lambda: min(diary.begun[chore.name] for chore in all_of_them) >= 3)
    rows = await library.pool.fetch("SELECT name, report FROM chores")
    reports = {row["name"]: row["report"] for row in rows}
    assert reports["raises"] == {"error": "ValueError: no such luck"}
    assert reports["hangs"] == {"error": "TimeoutError: "}
    assert "error" not in reports["works"]


@pytest.fixture
def held_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does something is believed for two seconds."""
    monkeypatch.setattr("servers.orchestrator.jobs.chores._HELD_SECONDS", 2.0)
    monkeypatch.setattr("servers.orchestrator.jobs.chores._HELD", dt.timedelta(seconds=2.0))


@pytest.mark.usefixtures("held_for_a_moment")
async def test_another_takes_over_from_who_is_gone(library: Library) -> None:
    diary = Diary()
    async with Chores(library.pool, [diary.chore("left", SOON, then=hang)]):
        await until(lambda: diary.begun["left"] == 1)
    assert await library.pool.fetchval("SELECT ran_at IS NULL FROM chores")
    async with Chores(library.pool, [diary.chore("left", SOON)]):
        await until(lambda: diary.begun["left"] == 2)


@pytest.mark.usefixtures("held_for_a_moment")
async def test_what_takes_long_is_not_begun_twice(library: Library) -> None:
    release, diary = asyncio.Event(), Diary()
    async with AsyncExitStack() as workers:
        for _ in range(3):
            slow = diary.chore("slow", SOON, then=release.wait)
            await workers.enter_async_context(Chores(library.pool, [slow, diary.chore("other", 0.5)]))
        await until(lambda: diary.begun["other"] >= 8)
        assert diary.begun["slow"] == 1
        release.set()
        await until(lambda: diary.begun["slow"] >= 3)


async def test_who_is_late_does_not_decide_when_it_is_due(library: Library) -> None:
    release, diary = asyncio.Event(), Diary()
    tomorrow = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)

    async def slow() -> None:
        await release.wait()

    async with Chores(library.pool, [diary.chore("slow", SOON, then=slow), diary.chore("other", SOON)]):
        await until(lambda: diary.begun["slow"] == 1)
        await library.pool.execute("UPDATE chores SET due_at = $1 WHERE name = 'slow'", tomorrow)  # taken over
        release.set()
        await until(lambda: diary.begun["other"] >= 5)
    row = await library.pool.fetchrow("SELECT due_at, report FROM chores WHERE name = 'slow'")
    assert row is not None
    assert (row["due_at"], row["report"]) == (tomorrow, None)


async def test_a_database_that_was_away(library: Library) -> None:
    diary = Diary()
    async with Chores(library.pool, [diary.chore("works", SOON)]):
        await until(lambda: diary.begun["works"] >= 1)
        connection = await asyncpg.connect(library.settings.database_url)
        await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        await connection.close()
        before = diary.begun["works"]
        await until(lambda: diary.begun["works"] >= before + 3)


async def test_jobs_the_queue_has_lost_are_dispatched(library: Library) -> None:
    _, track = await library.recording()
    waiting = await library.job(track)
    lost = await library.job(track, "RUNNING")
    await library.pool.execute("UPDATE jobs SET heartbeat_at = now() - interval '1 hour' WHERE id = $1", lost)
    await library.job(track, "RUNNING")
    called = asyncio.Event()

    async def handler() -> None:
        called.set()

    store = JobStore(library.pool)
    async with JobQueue(library.settings) as queue:
        consumer = asyncio.create_task(consume(library.settings, handler, asyncio.Event()))
        try:
            await library.pool.execute("DELETE FROM chores")
            # As after an outage: whoever runs may have been unable to say so.
            assert await dispatch(library, store, queue) == {"lost": 0, "due": 1}
            await library.pool.execute("INSERT INTO chores (name, ran_at) VALUES ('dispatch', now())")
            assert await dispatch(library, store, queue) == {"lost": 1, "due": 2}
            async with asyncio.timeout(100):
                await called.wait()
        finally:
            await stopped(consumer)
    queued = await library.pool.fetch("SELECT id FROM jobs WHERE state = 'QUEUED'")
    assert {row["id"] for row in queued} == {waiting, lost}


async def test_all_chores_of_a_worker_work(library: Library) -> None:
    sha256, _ = await library.recording()
    await library.stem(sha256, idle_days=31)
    reports: dict[str, Any] = {}
    async with JobQueue(library.settings) as queue:
        worker = chores(library, JobStore(library.pool), queue)
        assert {chore.name for chore in worker} == {"dispatch", *CLEAN_UPS}
        async with asyncio.timeout(100), Chores(library.pool, worker):
            while len(reports) < len(worker):
                rows = await library.pool.fetch("SELECT name, report FROM chores WHERE ran_at IS NOT NULL")
                reports = {row["name"]: row["report"] for row in rows}
                await asyncio.sleep(0.05)
    assert reports.pop("dispatch") == {"lost": 0, "due": 0}
    assert [finding["removed"] for finding in reports.pop("idle_stems")["findings"]] == [1]
    assert all("findings" in report for report in reports.values())
