"""Rows of jobs on a real PostgreSQL: every transition, and what a worker that lost its lease can still do (nothing)."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import uuid
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from servers.local import running_stack
from servers.orchestrator.jobs.store import FINAL_STATES, JobStore, LeaseLost, NewJob
from servers.storage.database import Pool, Row, connect
from servers.storage.migrate import migrate
from tests.conftest import stack_settings

LEASE = 60.0
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
            "kind": "SEPARATE",
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

    def claim(self, job: uuid.UUID) -> Row | None:
        """Begin an attempt."""
        return self(self.store.claim(job, LEASE))

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
    [("QUEUED", 1), ("RUNNING", None), ("SILENT", 2), *((state, None) for state in FINAL_STATES)],
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
        assert row["failures"] == claimed - 1  # a worker that died is one
        assert jobs.claim(job) is None


def test_of_many_workers_one_gets_the_job(jobs: Jobs) -> None:
    async def at_once(job: uuid.UUID) -> list[Row | None]:
        return await asyncio.gather(*(jobs.store.claim(job, LEASE) for _ in range(10)))

    for state in ("QUEUED", "SILENT"):
        job, _ = jobs.in_state(state)
        assert sum(row is not None for row in jobs(at_once(job))) == 1


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

    async def taken_while_held() -> tuple[bool, Row | None]:
        async with jobs.pool.acquire() as connection:
            async with connection.transaction():
                await jobs.store.hold(connection, job, attempt)
                claim = asyncio.create_task(jobs.store.claim(job, LEASE))
                await asyncio.wait({claim}, timeout=0.2)
                waited = not claim.done()
            return waited, await claim

    waited, row = jobs(taken_while_held())
    assert waited
    assert row is not None
    assert row["attempt"] == attempt + 1
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
    assert jobs(jobs.store.stranded(1, LEASE)) == []

    async def claimable() -> Row:
        while (row := await jobs.store.claim(job, LEASE)) is None:
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


def test_queue_position(jobs: Jobs) -> None:
    order = ["BACKGROUND", "INTERACTIVE", "BACKGROUND", "INTERACTIVE"]
    rows = [jobs.create(priority=priority) for priority in order]
    positions = [jobs(jobs.store.queue_position(row)) for row in rows]
    assert positions == [2, 0, 3, 1]
    assert jobs.claim(rows[1]["id"]) is not None
    positions = [jobs(jobs.store.queue_position(jobs.row(row["id"]))) for row in rows]
    assert positions == [1, 0, 2, 0]
    assert {(row["state"], row["priority"]): row["jobs"] for row in jobs(jobs.store.counts())} == {
        ("QUEUED", "BACKGROUND"): 2,
        ("QUEUED", "INTERACTIVE"): 1,
        ("RUNNING", "INTERACTIVE"): 1,
    }


def test_stranded(jobs: Jobs) -> None:
    old, fresh = jobs.create(priority="BACKGROUND")["id"], jobs.create()["id"]
    silent, quiet, alive = (jobs.in_state("RUNNING")[0] for _ in range(3))
    for state in FINAL_STATES:
        jobs.wait_in_queue(jobs.in_state(state)[0], 3600)
    for job in (old, alive):
        jobs.wait_in_queue(job, 100)
    jobs.fall_silent(silent, 61)
    jobs.fall_silent(quiet, 59)
    found = jobs(jobs.store.stranded(queued_seconds=99, lease_seconds=60))
    assert [row["id"] for row in found] == [silent, old]  # the interactive one first
    jobs(jobs.store.cancel(silent, "somebody"))
    jobs(jobs.store.cancel(old, "somebody"))
    # What was to be cancelled when its worker died still needs one to end it.
    assert [row["id"] for row in jobs(jobs.store.stranded(99, 60))] == [silent]
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
            self.claim()
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
        assert (row is not None) == (self.state == "QUEUED" or (self.state == "RUNNING" and self.silent))
        if row is not None:
            self.failures += self.state == "RUNNING"
            self.state, self.attempt, self.silent = "RUNNING", self.attempt + 1, False

    @precondition(lambda self: self.state in ("QUEUED", "RUNNING"))
    @rule()
    def take_over(self) -> None:
        """The newest worker is gone, another one comes."""
        if self.state == "RUNNING":
            self.fall_silent()
        self.claim()

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
            self.state, self.silent = "QUEUED", False
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
