"""Rows of jobs on a real PostgreSQL: every transition, and what a worker that lost its lease can still do (nothing)."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import uuid
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar, cast

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from servers.local import running_stack
from servers.orchestrator.jobs.store import FINAL_STATES, JobStore, LeaseLost, NewJob
from servers.orchestrator.jobs.store import _claim as claim_statement
from servers.storage.database import Pool, Row, connect
from servers.storage.migrate import migrate
from tests.conftest import stack_settings

LEASE = 60.0
AGEING = 600.0
FAILURES = 4
T = TypeVar("T")


class Jobs:
    """The store, and a way to call it from code without an event loop."""

    def __init__(self, runner: asyncio.Runner, pool: Pool, track: uuid.UUID) -> None:
        self.pool = pool
        self.store = JobStore(pool)
        self.track = track
        self._runner = runner

    def __call__(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work``."""
        return self._runner.run(work)

    def new(self, **changes: Any) -> NewJob:
        """A job to create."""
        values: dict[str, Any] = {
            "owner": "somebody",
            "request_id": uuid.uuid4(),
            "kind": str(uuid.uuid4()),  # a worker for this kind can have this job only
            "priority": "INTERACTIVE",
            "track_id": self.track,
            "spec": {"stems": ["vocals"]},
            "headers": {},
        }
        return NewJob(**(values | changes))

    def create(self, **changes: Any) -> Row:
        """A job, waiting."""
        row, is_new = self(self.store.create(self.new(**changes)))
        assert is_new
        return row

    def row(self, job: uuid.UUID) -> Row:
        """The job as it is now."""
        found = self(self.store.get(job))
        assert found is not None
        return found

    async def claimed(self, job: uuid.UUID) -> Row | None:
        """Begin an attempt at this job."""
        kind = await self.pool.fetchval("SELECT kind FROM jobs WHERE id = $1", job)
        return await self.take([kind])

    async def take(self, kinds: list[str], *, background: bool = True, lock: str | None = None) -> Row | None:
        """Begin an attempt at a job of these kinds."""
        return await self.store.claim(
            kinds, background=background, worker="somewhere", ageing_seconds=AGEING, lock=lock
        )

    def claim(self, job: uuid.UUID) -> Row | None:
        """Begin an attempt at this job."""
        return self(self.claimed(job))

    def requeue_lost(self) -> list[Row]:
        """Take jobs from silent workers."""
        return self(self.store.requeue_lost(LEASE, FAILURES))

    def fall_silent(self, job: uuid.UUID, seconds: float = 2 * LEASE) -> None:
        """As if the worker had given no sign of life for so long."""
        self(
            self.pool.execute(
                "UPDATE jobs SET heartbeat_at = now() - $2::interval WHERE id = $1",
                job,
                dt.timedelta(seconds=seconds),
            )
        )

    def wait_in_queue(self, job: uuid.UUID, seconds: float) -> None:
        """As if the job had been created so long ago."""
        self(
            self.pool.execute(
                "UPDATE jobs SET created_at = now() - $2::interval WHERE id = $1", job, dt.timedelta(seconds=seconds)
            )
        )

    def beat(self, job: uuid.UUID, attempt: int) -> bool:
        """A sign of life."""
        return self(self.store.beat(job, attempt, "SEPARATE", 0.5, 7.0))

    def hold(self, job: uuid.UUID, attempt: int) -> None:
        """Hold the job for the length of a transaction."""

        async def held() -> None:
            async with self.pool.acquire() as connection, connection.transaction():
                await self.store.hold(connection, job, attempt)

        self(held())

    def in_state(self, state: str) -> tuple[uuid.UUID, int]:
        """A job in that state, and its attempt. SILENT: running, but the worker is gone."""
        job = self.create()["id"]
        if state == "QUEUED":
            return job, 0
        assert self.claim(job) is not None
        if state == "SILENT":
            self.fall_silent(job)
        elif state != "RUNNING":
            self(self.store.finish(job, 1, state))
        return job, 1


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """An empty table of jobs."""
    with running_stack(tmp_path_factory.mktemp("postgres"), only={"postgres"}) as stack:
        settings = stack_settings(stack)
        migrate(settings.database_url)
        with asyncio.Runner() as runner:
            pool = runner.run(connect(settings))
            track, sha256 = uuid.uuid4(), hashlib.sha256(b"track").hexdigest()
            runner.run(
                pool.execute(
                    """INSERT INTO recordings (sha256, size_bytes, object_key, container, codec, sample_rate, channels,
                                               frames, mean, std, peak)
                       VALUES ($1, 1, 'key', 'wav', 'pcm', 44100, 2, 1, 0, 1, 1)""",
                    sha256,
                )
            )
            runner.run(pool.execute("INSERT INTO tracks VALUES ($1, 'somebody', 'a track', $2)", track, sha256))
            yield Jobs(runner, pool, track)
            runner.run(pool.close())


@pytest.fixture(autouse=True)
def empty(jobs: Jobs) -> None:
    """No job of another test."""
    jobs(jobs.pool.execute("DELETE FROM jobs"))


def test_one_request_makes_one_job(jobs: Jobs) -> None:
    request = uuid.uuid4()

    async def at_once() -> list[tuple[Row, bool]]:
        return await asyncio.gather(*(jobs.store.create(jobs.new(request_id=request)) for _ in range(5)))

    made = jobs(at_once())
    assert len({row["id"] for row, _ in made}) == 1
    assert sorted(is_new for _, is_new in made) == [False] * 4 + [True]
    # What is told of the job is what the first request asked for; ids of another owner's requests do not collide.
    again, is_new = jobs(jobs.store.create(jobs.new(request_id=request, spec={"stems": ["bass"]})))
    assert (is_new, again["spec"]) == (False, {"stems": ["vocals"]})
    assert jobs.create(request_id=request, owner="somebody else")["id"] != again["id"]


def test_a_job_belongs_to_its_owner(jobs: Jobs) -> None:
    job = jobs.create()["id"]
    assert jobs(jobs.store.get(job, "somebody")) is not None
    assert jobs(jobs.store.get(job, "somebody else")) is None
    assert jobs(jobs.store.cancel(job, "somebody else")) is None
    assert jobs.row(job)["state"] == "QUEUED"
    assert jobs(jobs.store.get(uuid.uuid4())) is None
    assert jobs(jobs.store.cancel(uuid.uuid4(), "somebody")) is None


@pytest.mark.parametrize(
    ("state", "claimed"),
    [("QUEUED", 1), ("RUNNING", None), ("SILENT", None), *((state, None) for state in FINAL_STATES)],
)
def test_claim(jobs: Jobs, state: str, claimed: int | None) -> None:
    job, _ = jobs.in_state(state)
    before = jobs.row(job)
    row = jobs.claim(job)
    if claimed is None:
        assert row is None
        assert jobs.row(job) == before
    else:
        assert row is not None
        assert (row["state"], row["attempt"], row["fraction"]) == ("RUNNING", claimed, 0)
        assert (row["worker"], row["attempts"], row["failures"]) == ("somewhere", [], 0)
        assert jobs.claim(job) is None


def test_of_many_workers_one_gets_the_job(jobs: Jobs) -> None:
    async def at_once(job: uuid.UUID) -> list[Row | None]:
        return await asyncio.gather(*(jobs.claimed(job) for _ in range(10)))

    job, _ = jobs.in_state("QUEUED")
    assert sum(row is not None for row in jobs(at_once(job))) == 1


def test_of_jobs_that_do_the_same_one_runs(jobs: Jobs) -> None:
    """However many workers ask for them at the same moment; the next runs when that one has ended."""
    kind, lock = str(uuid.uuid4()), f"separate:{uuid.uuid4()}"
    ids = [jobs.create(kind=kind, lock=lock)["id"] for _ in range(5)]
    other = jobs.create(kind=kind, lock="separate:other")["id"]

    async def at_once() -> list[Row | None]:
        return await asyncio.gather(*(jobs.take([kind], lock=lock) for _ in range(10)))

    for round_ in range(5):
        rows = [row for row in jobs(at_once()) if row is not None]
        assert len(rows) == 1
        leader = rows[0]["id"]
        ids.remove(leader)
        assert sorted(row["id"] for row in jobs(jobs.store.followers(lock))) == sorted(ids)
        for waiting in ids:
            found = jobs(jobs.store.leader(jobs.row(waiting)))
            assert found is not None
            assert found["id"] == leader
        assert jobs(jobs.store.leader(jobs.row(leader))) is None
        assert jobs(jobs.store.leader(jobs.row(other))) is None
        if round_ % 2:
            jobs(jobs.store.finish(leader, 1, "SUCCEEDED"))
        else:  # its worker died
            jobs.fall_silent(leader)
            jobs.requeue_lost()
            jobs(jobs.store.cancel(leader, "somebody"))
    assert jobs.row(other)["state"] == "QUEUED"


def test_many_workers_share_a_queue_without_losing_or_doubling(jobs: Jobs) -> None:
    kind = str(uuid.uuid4())
    ids = {jobs.create(kind=kind, lock=f"same:{n % 7}" if n % 2 else None)["id"] for n in range(40)}
    done: list[uuid.UUID] = []

    async def work() -> None:
        while len(done) < len(ids):
            if (row := await jobs.take([kind])) is not None:
                await asyncio.sleep(0)
                await jobs.store.finish(row["id"], row["attempt"], "SUCCEEDED")
                done.append(row["id"])

    async def all_work() -> None:
        await asyncio.gather(*(work() for _ in range(6)))

    jobs(all_work())
    assert sorted(done) == sorted(ids)


def order_of(jobs: Jobs, kind: str, **options: Any) -> list[uuid.UUID]:
    """The order in which jobs of a kind begin, if each ends at once."""
    order = []
    while (row := jobs(jobs.take([kind], **options))) is not None:
        order.append(row["id"])
        jobs(jobs.store.finish(row["id"], row["attempt"], "SUCCEEDED"))
    return order


def test_a_thousand_jobs_of_one_do_not_block_the_first_of_another(jobs: Jobs) -> None:
    kind = str(uuid.uuid4())
    many = [jobs.create(kind=kind, owner="busy")["id"] for _ in range(20)]
    assert order_of_next(jobs, kind) == many[0]
    few = [jobs.create(kind=kind, owner="modest")["id"] for _ in range(3)]
    late = jobs.create(kind=kind, owner="late")["id"]
    order = order_of(jobs, kind)
    assert [order.index(job) for job in few] == [1, 4, 6]  # in turns with 'busy', and with 'late' in the first
    assert order.index(late) == 2
    assert [job for job in order if job in many] == many[1:]


def order_of_next(jobs: Jobs, kind: str) -> uuid.UUID:
    """The job that begins now; it ends at once."""
    row = jobs(jobs.take([kind]))
    assert row is not None
    jobs(jobs.store.finish(row["id"], row["attempt"], "SUCCEEDED"))
    return cast(uuid.UUID, row["id"])


def test_interactive_jobs_come_first(jobs: Jobs) -> None:
    kind = str(uuid.uuid4())
    priorities = ["BACKGROUND", "INTERACTIVE", "BACKGROUND", "INTERACTIVE"]
    ids = [jobs.create(kind=kind, priority=priority)["id"] for priority in priorities]
    assert order_of(jobs, kind, background=False) == [ids[1], ids[3]]
    assert order_of(jobs, kind) == [ids[0], ids[2]]


def test_background_jobs_do_not_starve(jobs: Jobs) -> None:
    """One of them begins in each time of ageing, once it has waited so long, and no more than one."""
    kind = str(uuid.uuid4())
    interactive = [jobs.create(kind=kind)["id"] for _ in range(4)]
    background = [jobs.create(kind=kind, priority="BACKGROUND")["id"] for _ in range(2)]
    jobs(jobs.pool.execute("UPDATE jobs SET claimed_at = NULL WHERE priority = 'BACKGROUND'"))
    assert order_of_next(jobs, kind) == interactive[0]
    for job in background:
        jobs.wait_in_queue(job, 2 * AGEING)
    assert order_of_next(jobs, kind) == background[0]
    assert order_of_next(jobs, kind) == interactive[1]
    jobs(
        jobs.pool.execute(
            "UPDATE jobs SET claimed_at = now() - $2::interval WHERE id = $1",
            background[0],
            dt.timedelta(seconds=AGEING + 1),
        )
    )
    row = jobs(jobs.take([kind], background=False))  # a worker full of them does not take it
    assert row is not None
    assert row["id"] == interactive[2]
    assert order_of_next(jobs, kind) == background[1]
    assert order_of_next(jobs, kind) == interactive[3]


def test_who_comes_back_goes_first(jobs: Jobs) -> None:
    kind = str(uuid.uuid4())
    for _ in range(3):
        jobs.create(kind=kind)
    first = jobs(jobs.take([kind]))
    assert first is not None
    jobs.create(kind=kind, owner="another")
    jobs(jobs.store.hand_back(first["id"], first["attempt"]))
    assert order_of_next(jobs, kind) == first["id"]


def test_lost_jobs_wait_again_and_some_day_fail(jobs: Jobs) -> None:
    job, _ = jobs.in_state("SILENT")
    for failures in range(1, FAILURES):
        rows = [row for row in jobs.requeue_lost() if row["id"] == job]
        assert [(row["state"], row["failures"], row["attempt"]) for row in rows] == [("QUEUED", failures, failures)]
        assert jobs.requeue_lost() == []
        assert jobs.claim(job) is not None
        jobs.fall_silent(job)
    (row,) = jobs.requeue_lost()
    assert (row["state"], row["error"]["reason"], row["error"]["retryable"]) == ("FAILED", "ATTEMPTS_EXHAUSTED", True)
    assert row["ended_at"] is not None
    assert [each["outcome"] for each in row["attempts"]] == ["LOST"] * FAILURES
    assert [each["number"] for each in row["attempts"]] == [1, 2, 3, 4]


def test_what_a_person_waits_for_is_not_begun_in_the_background(jobs: Jobs) -> None:
    kind, lock = str(uuid.uuid4()), f"separate:{uuid.uuid4()}"
    background = jobs.create(kind=kind, lock=lock, priority="BACKGROUND")["id"]
    person = jobs.create(kind=str(uuid.uuid4()), lock=lock)["id"]
    assert jobs(jobs.take([kind])) is None
    assert jobs.claim(person) is not None
    jobs(jobs.store.finish(person, 1, "SUCCEEDED"))
    assert order_of_next(jobs, kind) == background


@pytest.mark.parametrize("retry_in", [None, 60.0])
def test_a_job_that_was_to_be_cancelled_is_not_handed_back(jobs: Jobs, retry_in: float | None) -> None:
    job, attempt = jobs.in_state("RUNNING")
    jobs(jobs.store.cancel(job, "somebody"))
    row = jobs(jobs.store.hand_back(job, attempt, retry_in=retry_in, reason="INFRASTRUCTURE"))
    assert row is not None
    assert (row["state"], row["attempts"][0]["outcome"], row["attempts"][0]["reason"]) == (
        "CANCELLED",
        "CANCELLED",
        None,
    )
    assert row["ended_at"] is not None


@pytest.mark.parametrize("background", [True, False])
def test_claims_do_not_read_the_whole_queue(jobs: Jobs, background: bool) -> None:
    """However many wait that may not begin."""
    jobs(jobs.pool.execute("DELETE FROM jobs"))
    jobs.create(priority="BACKGROUND")
    jobs(
        jobs.pool.execute(
            """INSERT INTO jobs (id, owner, request_id, kind, priority, track_id, spec, turn)
               SELECT gen_random_uuid(), owner, gen_random_uuid(), kind, priority, track_id, spec, n
               FROM jobs, generate_series(1, 5000) AS n"""
        )
    )
    jobs(jobs.pool.execute("ANALYZE jobs"))
    kind = jobs(jobs.pool.fetchval("SELECT kind FROM jobs LIMIT 1"))
    arguments = [[kind], "somewhere", *([dt.timedelta(seconds=AGEING)] if background else [])]

    async def plan() -> dict[str, Any]:
        async with jobs.pool.acquire() as connection:
            statement = claim_statement(background=background, locked=False)
            told = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *arguments)
            return json.loads(told)[0]["Plan"]

    def rows(node: dict[str, Any]) -> float:
        read = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        return read + sum(map(rows, node.get("Plans", ())))

    assert rows(jobs(plan())) < 100


def test_a_lost_job_that_was_to_be_cancelled_is(jobs: Jobs) -> None:
    job, _ = jobs.in_state("RUNNING")
    jobs(jobs.store.cancel(job, "somebody"))
    jobs.fall_silent(job)
    (row,) = jobs.requeue_lost()
    assert (row["state"], row["error"]) == ("CANCELLED", None)


def test_the_history_of_attempts(jobs: Jobs) -> None:
    job, _ = jobs.in_state("RUNNING")
    jobs(jobs.store.hand_back(job, 1))
    assert jobs.claim(job) is not None
    jobs(jobs.store.hand_back(job, 2, retry_in=0, reason="INFRASTRUCTURE", message="ConnectionError"))
    assert jobs.claim(job) is not None
    row = jobs(jobs.store.finish(job, 3, "FAILED", error={"reason": "BROKEN", "message": "no use"}))
    known = [(each["number"], each["outcome"], each["reason"], each["message"]) for each in row["attempts"]]
    assert known == [
        (1, "HANDED_BACK", None, None),
        (2, "FAILED", "INFRASTRUCTURE", "ConnectionError"),
        (3, "FAILED", "BROKEN", "no use"),
    ]
    times = [dt.datetime.fromisoformat(each[key]) for each in row["attempts"] for key in ("started", "ended")]
    assert times == sorted(times)
    assert {each["worker"] for each in row["attempts"]} == {"somewhere"}


def test_how_many_wait(jobs: Jobs) -> None:
    for _ in range(5):
        jobs.create(owner="counted")
    jobs.create(owner="counted", priority="BACKGROUND")
    assert jobs(jobs.store.waiting("counted", 100)) == 6
    assert jobs(jobs.store.waiting("counted", 4)) == 4
    assert jobs(jobs.store.waiting("nobody", 4)) == 0


def test_jobs_that_are_due(jobs: Jobs) -> None:
    """Not those of which the same runs, nor those that are to wait a while."""
    jobs(jobs.pool.execute("DELETE FROM jobs"))
    kind, lock = str(uuid.uuid4()), f"same:{uuid.uuid4()}"
    jobs.create(kind=kind, lock=lock)
    jobs.create(kind=kind, lock=lock)
    assert jobs(jobs.store.due(10)) == 2
    assert jobs(jobs.take([kind])) is not None
    assert jobs(jobs.store.due(10)) == 0
    later = jobs.in_state("RUNNING")[0]
    jobs(jobs.store.hand_back(later, 1, retry_in=60))
    assert jobs(jobs.store.due(10)) == 0
    for _ in range(12):
        jobs.create(kind=kind)
    assert jobs(jobs.store.due(10)) == 10


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", "SILENT", *FINAL_STATES])
@pytest.mark.parametrize("final", FINAL_STATES)
def test_finish(jobs: Jobs, state: str, final: str) -> None:
    job, attempt = jobs.in_state(state)
    before = jobs.row(job)
    error = {"reason": "BROKEN"} if final == "FAILED" else None
    if state not in ("RUNNING", "SILENT"):
        with pytest.raises(LeaseLost):
            jobs(jobs.store.finish(job, attempt, final, error=error))
        assert jobs.row(job) == before
        return
    # A worker that was merely slow to say so is still the newest: its work counts.
    row = jobs(jobs.store.finish(job, attempt, final, error=error, warnings=["loud"], timings=[{"stage": "FETCH"}]))
    assert row == jobs.row(job)
    assert (row["state"], row["error"], row["warnings"], row["eta_seconds"]) == (final, error, ["loud"], None)
    assert row["ended_at"] >= row["started_at"] >= row["created_at"]
    assert row["fraction"] == (1 if final == "SUCCEEDED" else 0)


def test_beat_renews_the_lease_and_hears_of_cancellation(jobs: Jobs) -> None:
    job, attempt = jobs.in_state("SILENT")
    assert jobs.beat(job, attempt) is False
    assert jobs.claim(job) is None
    row = jobs.row(job)
    assert (row["stage"], row["fraction"], row["eta_seconds"]) == ("SEPARATE", 0.5, 7.0)
    cancelled = jobs(jobs.store.cancel(job, "somebody"))
    assert cancelled is not None
    assert cancelled["state"] == "RUNNING"
    assert jobs.beat(job, attempt) is True


@pytest.mark.parametrize("state", ["QUEUED", *FINAL_STATES])
def test_beat_and_hold_need_a_running_job(jobs: Jobs, state: str) -> None:
    job, attempt = jobs.in_state(state)
    before = jobs.row(job)
    with pytest.raises(LeaseLost):
        jobs.beat(job, attempt)
    with pytest.raises(LeaseLost):
        jobs.hold(job, attempt)
    assert jobs.row(job) == before


def test_a_held_job_cannot_be_taken_over(jobs: Jobs) -> None:
    job, attempt = jobs.in_state("SILENT")

    async def taken_while_held() -> tuple[list[Row], list[Row]]:
        async with jobs.pool.acquire() as connection:
            async with connection.transaction():
                await jobs.store.hold(connection, job, attempt)
                lost_while_held = await jobs.store.requeue_lost(LEASE, FAILURES)
            return lost_while_held, await jobs.store.requeue_lost(LEASE, FAILURES)

    while_held, afterwards = jobs(taken_while_held())
    assert while_held == []
    assert [row["id"] for row in afterwards] == [job]
    assert jobs.claim(job) is not None
    with pytest.raises(LeaseLost):
        jobs.hold(job, attempt)
    jobs.hold(job, attempt + 1)


def test_hand_back(jobs: Jobs) -> None:
    job, attempt = jobs.in_state("RUNNING")
    jobs.beat(job, attempt)
    jobs(jobs.store.hand_back(job, attempt))
    row = jobs.row(job)
    # To whoever looks, it waits as it did before.
    assert (row["state"], row["stage"], row["fraction"], row["eta_seconds"]) == ("QUEUED", "UNSPECIFIED", 0, None)
    with pytest.raises(LeaseLost):
        jobs.beat(job, attempt)
    again = jobs.claim(job)
    assert again is not None
    assert again["attempt"] == 2
    assert again["started_at"] == row["started_at"]
    jobs(jobs.store.hand_back(job, attempt))  # the old worker's
    assert jobs.row(job)["state"] == "RUNNING"


def test_a_failed_attempt_is_repeated_later(jobs: Jobs) -> None:
    job, attempt = jobs.in_state("RUNNING")
    jobs.wait_in_queue(job, 3600)
    jobs(jobs.store.hand_back(job, attempt))
    assert jobs.row(job)["failures"] == 0  # its worker was stopped, no more
    assert jobs.claim(job) is not None
    jobs(jobs.store.hand_back(job, attempt + 1, retry_in=0.3))
    row = jobs.row(job)
    assert (row["state"], row["failures"]) == ("QUEUED", 1)
    assert jobs.claim(job) is None

    async def claimable() -> Row:
        while (row := await jobs.claimed(job)) is None:
            await asyncio.sleep(0.05)
        return row

    assert jobs(claimable())["failures"] == 1


@pytest.mark.parametrize(
    ("state", "after"),
    [
        ("QUEUED", "CANCELLED"),
        ("RUNNING", "RUNNING"),
        ("SILENT", "RUNNING"),
        *((state, state) for state in FINAL_STATES),
    ],
)
def test_cancel(jobs: Jobs, state: str, after: str) -> None:
    job, attempt = jobs.in_state(state)
    before = jobs.row(job)
    row = jobs(jobs.store.cancel(job, "somebody"))
    assert row is not None
    assert row["state"] == after
    if state in FINAL_STATES:
        assert row == before
    else:
        assert row["cancel_requested"]
        assert (row["ended_at"] is not None) == (after == "CANCELLED")
    assert jobs(jobs.store.cancel(job, "somebody")) == row  # again: nothing changes
    if after == "RUNNING":
        # Whatever it failed of meanwhile, the caller gets what they asked for; a success is not taken back.
        failed = jobs(jobs.store.finish(job, attempt, "FAILED", error={"reason": "BROKEN"}))
        assert (failed["state"], failed["error"]) == ("CANCELLED", None)


def test_unfinished_of_a_track(jobs: Jobs) -> None:
    fresh, old = jobs.create()["id"], jobs.create()["id"]
    jobs(jobs.store.cancel(old, "somebody"))
    assert fresh in jobs(jobs.store.unfinished_of_track(jobs.track))
    assert old not in jobs(jobs.store.unfinished_of_track(jobs.track))


AGES = st.sampled_from([1, 0, 2])  # of an attempt: 0 is the newest


class Interleaving(RuleBasedStateMachine):
    """One job, and workers of several attempts that all believe it is theirs, in any order."""

    def __init__(self, jobs: Jobs) -> None:
        super().__init__()
        self.jobs = jobs
        self.job: uuid.UUID = jobs.create()["id"]
        self.state, self.attempt, self.silent, self.cancel_requested = "QUEUED", 0, False, False
        self.failures = 0
        self.ended: Row | None = None
        for _ in range(2):  # what follows is about workers that have been overtaken
            self.take_over()

    def _live(self, age: int) -> bool:
        return age == 0 and self.state == "RUNNING"

    def _write(self, age: int, work: Coroutine[Any, Any, Any]) -> Any:
        """A fenced write: it works for the newest attempt of a running job, else it changes nothing at all."""
        before = self.jobs.row(self.job)
        try:
            answer = self.jobs(work)
        except LeaseLost:
            assert not self._live(age)
            assert self.jobs.row(self.job) == before
            return None
        assert self._live(age)
        return answer

    @rule()
    def claim(self) -> None:
        row = self.jobs.claim(self.job)
        assert (row is not None) == (self.state == "QUEUED")
        if row is not None:
            self.state, self.attempt, self.silent = "RUNNING", self.attempt + 1, False

    @precondition(lambda self: self.state in ("QUEUED", "RUNNING"))
    @rule()
    def take_over(self) -> None:
        """The newest worker is gone, another one comes."""
        if self.state == "RUNNING":
            self.fall_silent()
            self.requeue_lost()
        self.claim()

    @rule()
    def requeue_lost(self) -> None:
        taken = self.job in [row["id"] for row in self.jobs.requeue_lost()]
        assert taken == (self.state == "RUNNING" and self.silent)
        if taken:
            self.failures += 1
            self.silent = False
            self.state = "CANCELLED" if self.cancel_requested else "FAILED" if self.failures >= FAILURES else "QUEUED"

    @precondition(lambda self: self.state == "RUNNING")
    @rule()
    def fall_silent(self) -> None:
        self.jobs.fall_silent(self.job)
        self.silent = True

    @rule(age=AGES)
    def beat(self, age: int) -> None:
        cancel = self._write(age, self.jobs.store.beat(self.job, self.attempt - age, "SEPARATE", 0.1 * age, None))
        if cancel is not None:
            assert cancel == self.cancel_requested
            self.silent = False

    @rule(age=AGES, state=st.sampled_from(FINAL_STATES))
    def finish(self, age: int, state: str) -> None:
        if self._write(age, self.jobs.store.finish(self.job, self.attempt - age, state)) is not None:
            self.state = "CANCELLED" if state == "FAILED" and self.cancel_requested else state

    @rule(age=AGES, failed=st.booleans())
    def hand_back(self, age: int, failed: bool) -> None:
        before = self.jobs.row(self.job)
        self.jobs(self.jobs.store.hand_back(self.job, self.attempt - age, retry_in=0 if failed else None))
        if self._live(age):
            self.failures += failed
            self.state, self.silent = "CANCELLED" if self.cancel_requested else "QUEUED", False
        else:
            assert self.jobs.row(self.job) == before

    @rule(age=AGES)
    def hold(self, age: int) -> None:
        before = self.jobs.row(self.job)
        try:
            self.jobs.hold(self.job, self.attempt - age)
        except LeaseLost:
            assert not self._live(age)
        else:
            assert self._live(age)
        assert self.jobs.row(self.job) == before

    @rule()
    def cancel(self) -> None:
        assert self.jobs(self.jobs.store.cancel(self.job, "somebody")) is not None
        if self.state not in FINAL_STATES:
            self.cancel_requested = True
        if self.state == "QUEUED":
            self.state = "CANCELLED"

    @invariant()
    def is_as_expected(self) -> None:
        row = self.jobs.row(self.job)
        assert (row["state"], row["attempt"], row["failures"]) == (self.state, self.attempt, self.failures)
        assert row["cancel_requested"] == self.cancel_requested
        ended = [each["number"] for each in row["attempts"]]
        assert ended == list(range(1, self.attempt + (self.state != "RUNNING")))  # each once, in order
        assert (row["ended_at"] is not None) == (self.state in FINAL_STATES)
        if self.ended is not None:
            assert row == self.ended  # for ever
        elif self.state in FINAL_STATES:
            self.ended = row


def test_no_old_attempt_has_any_effect_and_no_final_state_is_left(jobs: Jobs) -> None:
    class WithJobs(Interleaving):
        def __init__(self) -> None:
            super().__init__(jobs)

    run_state_machine_as_test(
        WithJobs,
        settings=hypothesis_settings(
            max_examples=50,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
