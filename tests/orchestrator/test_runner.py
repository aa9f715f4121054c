"""Where jobs run: the slots of a worker, on a real PostgreSQL and Valkey, with pipelines that only wait."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from servers.local import Stack, running_stack
from servers.orchestrator.jobs.events import JobEvents
from servers.orchestrator.jobs.events import connect as connect_redis
from servers.orchestrator.jobs.queue import JobQueue, consume
from servers.orchestrator.jobs.runner import JobFailure, JobRun, Runner
from servers.orchestrator.jobs.store import JobStore, NewJob
from servers.platform.settings import Settings
from servers.storage.database import Pool, Row, connect
from servers.storage.migrate import migrate
from tests.conftest import stack_settings

pytestmark = pytest.mark.timeout(240)

KINDS = ("SEPARATE", "COVER")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """PostgreSQL and Valkey."""
    with running_stack(tmp_path_factory.mktemp("stores"), only={"postgres", "valkey"}) as stack:
        migrate(stack.environment["CONTRAFACT_DATABASE_URL"])
        yield stack


class Worker:
    """A worker whose jobs last until ``release`` is set; what they do is written down."""

    def __init__(self, pool: Pool, queue: JobQueue, events: JobEvents, settings: Settings, track: uuid.UUID) -> None:
        self.store = JobStore(pool)
        self.release = asyncio.Event()
        self.most: Counter[str] = Counter()  # at once, by kind and by priority
        self.errors: dict[uuid.UUID, list[Exception]] = {}  # of the first attempts
        self.begun: list[uuid.UUID] = []
        self.runner = Runner(dict.fromkeys(KINDS, self.pipeline), self.store, events, queue, settings)
        self.queue = queue
        self._track = track
        self._now: Counter[str] = Counter()

    async def pipeline(self, run: JobRun) -> None:
        """Wait, and fail if that is wanted."""
        self.begun.append(run.id)
        marks = (run.row["kind"], run.row["priority"], "all")
        self._now.update(marks)
        self.most |= self._now
        try:
            await self.release.wait()
            if errors := self.errors.get(run.id):
                raise errors.pop()
        finally:
            self._now.subtract(marks)

    async def create(
        self, kind: str = "SEPARATE", priority: str = "INTERACTIVE", *, ticket: bool = True, **more: Any
    ) -> uuid.UUID:
        """A job, and its ticket."""
        spec = {"track": f"tracks/{self._track}", "format": "AUDIO_FORMAT_FLAC"}
        row, _ = await self.store.create(NewJob("o", uuid.uuid4(), kind, priority, spec, self._track, {}, **more))
        if ticket:
            await self.queue.send(str(row["id"]))
        return row["id"]

    async def row(self, job: uuid.UUID) -> Row:
        """The job as it is."""
        found = await self.store.get(job)
        assert found is not None
        return found

    async def ended(self, *jobs: uuid.UUID) -> list[str]:
        """Wait for the ends of jobs; their states."""
        while True:
            rows = [await self.row(job) for job in jobs]
            if all(row["ended_at"] for row in rows):
                return [row["state"] for row in rows]
            await asyncio.sleep(0.02)


@asynccontextmanager
async def worker(stores: Stack, **changes: Any) -> AsyncIterator[Worker]:
    """A worker at work on an empty table."""
    settings = stack_settings(stores).model_copy(update=changes)
    pool, redis = await connect(settings), connect_redis(settings)
    await pool.execute("DELETE FROM jobs")
    await redis.flushall()
    track, sha256 = uuid.uuid4(), hashlib.sha256(uuid.uuid4().bytes).hexdigest()
    await pool.execute(
        """INSERT INTO recordings (sha256, size_bytes, object_key, container, codec, sample_rate, channels,
                                   frames, mean, std, peak)
           VALUES ($1, 1, 'key', 'wav', 'pcm', 44100, 2, 1, 0, 1, 1)""",
        sha256,
    )
    await pool.execute("INSERT INTO tracks (id, owner, sha256, display_name) VALUES ($1, 'o', $2, 't')", track, sha256)
    async with JobQueue(settings) as queue:
        made = Worker(pool, queue, JobEvents(redis, settings), settings, track)
        consuming = asyncio.create_task(consume(settings, made.runner.serve, asyncio.Event()))
        try:
            yield made
        finally:
            await made.runner.drain()
            consuming.cancel()
            await asyncio.gather(consuming, return_exceptions=True)
            await redis.aclose()
            await pool.close()


async def settled(made: Worker, count: int) -> None:
    """Wait until so many have begun, and give more the time to."""
    async with asyncio.timeout(60):
        while len(made.begun) < count:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.5)


async def test_background_jobs_leave_a_slot(stores: Stack) -> None:
    async with worker(stores, worker_concurrency=2, interactive_slots=1) as made:
        background = [await made.create(priority="BACKGROUND") for _ in range(5)]
        await settled(made, 2)
        assert set(made.begun) == set(background[:2])
        people = [await made.create() for _ in range(3)]
        await settled(made, 3)
        assert made.begun[2:] == [people[0]]
        made.release.set()
        assert await made.ended(*background, *people) == ["SUCCEEDED"] * 8
        claimed = {job: (await made.row(job))["claimed_at"] for job in (*background[2:], *people[1:])}
        assert max(claimed[job] for job in people[1:]) < min(claimed[job] for job in background[2:])
        assert made.most["all"] == 3
        assert made.most["BACKGROUND"] == 2


async def test_limits_by_kind(stores: Stack) -> None:
    async with worker(stores, worker_concurrency=4, interactive_slots=0, job_limits={"COVER": 1}) as made:
        covers = [await made.create("COVER") for _ in range(3)]
        separations = [await made.create() for _ in range(5)]
        await settled(made, 4)
        assert (made.most["COVER"], made.most["SEPARATE"]) == (1, 3)  # covers wait, and keep nobody waiting
        made.release.set()
        assert await made.ended(*covers, *separations) == ["SUCCEEDED"] * 8
        assert made.most["COVER"] == 1
        assert made.most["all"] <= 4


async def test_bad_input_fails_at_once_and_outages_are_tried_again(
    stores: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servers.orchestrator.jobs.runner.RETRY_SECONDS", 0.01)
    async with worker(stores, max_job_failures=3) as made:
        bad, unlucky, hopeless = [await made.create() for _ in range(3)]
        made.errors |= {bad: [JobFailure("BROKEN", "no use")], unlucky: [OSError()], hopeless: [OSError()] * 3}
        made.release.set()
        assert await made.ended(bad, unlucky, hopeless) == ["FAILED", "SUCCEEDED", "FAILED"]
        attempts = [(await made.row(job))["attempt"] for job in (bad, unlucky, hopeless)]
        assert attempts == [1, 2, 3]
        row = await made.row(hopeless)
        assert row["error"]["reason"] == "INFRASTRUCTURE"
        assert [(each["outcome"], each["reason"]) for each in row["attempts"]] == [("FAILED", "INFRASTRUCTURE")] * 3


async def test_followers_end_with_their_leader_whatever_waits_before_them(stores: Stack) -> None:
    async with worker(stores, worker_concurrency=1, interactive_slots=0) as made:
        leader = await made.create(lock="separate:x")
        await settled(made, 1)
        others = [await made.create() for _ in range(3)]
        followers = [await made.create(lock="separate:x") for _ in range(3)]
        made.release.set()
        await made.ended(leader, *others, *followers)
        assert made.begun == [leader, *followers, *others]


async def test_a_person_who_comes_to_it_gets_it_at_his_priority(stores: Stack) -> None:
    """The background job that was at it lets go, waits, and has the result."""
    async with worker(stores, worker_concurrency=1, interactive_slots=1) as made:
        background = await made.create(priority="BACKGROUND", lock="separate:x")
        await settled(made, 1)
        person = await made.create(lock="separate:x")
        while made.begun != [background, person]:
            await asyncio.sleep(0.05)
        made.release.set()
        assert await made.ended(person, background) == ["SUCCEEDED", "SUCCEEDED"]
        rows = [await made.row(background), await made.row(person)]
        assert [(row["attempt"], row["failures"], row["priority"]) for row in rows] == [
            (2, 0, "BACKGROUND"),
            (1, 0, "INTERACTIVE"),
        ]
        assert rows[0]["attempts"][0]["outcome"] == "HANDED_BACK"


async def test_an_error_of_ours_fails_the_job(stores: Stack) -> None:
    async with worker(stores) as made:
        job = await made.create()
        made.errors[job] = [asyncpg.ForeignKeyViolationError("no such track")]
        made.release.set()
        assert await made.ended(job) == ["FAILED"]
        assert (await made.row(job))["error"]["reason"] == "INTERNAL"


async def test_a_cancelled_job_lets_go(stores: Stack) -> None:
    async with worker(stores, worker_concurrency=1, interactive_slots=0) as made:
        first, second = await made.create(), await made.create()
        await settled(made, 1)
        await made.store.cancel(first, "o")
        assert await made.ended(first) == ["CANCELLED"]
        made.release.set()
        assert await made.ended(second) == ["SUCCEEDED"]


async def test_lost_tickets_are_replaced(stores: Stack) -> None:
    """After a flush nobody would come: but whoever asks how many wait can wake so many."""
    async with worker(stores) as made:
        made.release.set()
        jobs = [await made.create(ticket=False) for _ in range(2)]
        await asyncio.sleep(0.5)
        assert [(await made.row(job))["state"] for job in jobs] == ["QUEUED"] * 2
        await made.queue.wake(await made.store.due(10))
        assert await made.ended(*jobs) == ["SUCCEEDED"] * 2
