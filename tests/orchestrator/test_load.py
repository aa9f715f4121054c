"""How much there is to do, places in the queue, and when a waiting job ends: from rows on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from contrafact.v1 import job_pb2
from prometheus_client import REGISTRY

from servers.local import Stack, running_stack
from servers.orchestrator.jobs.load import JOBS_OF_A_RATE, Load
from servers.storage.database import Row
from servers.storage.migrate import migrate
from tests.conftest import stack_settings
from tests.orchestrator.jobs_world import World, world_of

QUEUED, RUNNING = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING
MADE: list[dict[str, Any]]
FOUND: list[dict[str, Any]]
MADE, FOUND = [{"stage": "FETCH", "seconds": 1}, {"stage": "SEPARATE", "seconds": 9}], []


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """PostgreSQL and Valkey."""
    with running_stack(tmp_path_factory.mktemp("stores"), only={"postgres", "valkey"}) as running:
        migrate(stack_settings(running).database_url)
        yield running


@pytest.fixture
async def world(stores: Stack) -> AsyncIterator[World]:
    """A world without jobs, whose workers have two slots."""
    async with world_of(stack_settings(stores).model_copy(update={"worker_concurrency": 2})) as made:
        yield made


async def succeeded(world: World, run: float, *, seconds: float = 10.0, timings: Any = MADE, **changes: Any) -> None:
    """A job that took ``run`` seconds, on audio of ``seconds``, ended."""
    now = dt.datetime.now(dt.UTC)
    job = await world.job(seconds=seconds, **changes)
    started = now - dt.timedelta(seconds=run)
    await world.set(job, state="SUCCEEDED", started_at=started, claimed_at=started, ended_at=now, timings=timings)


async def place(world: World, job: Row) -> tuple[int, Any]:
    """A job's position and ETA."""
    row = await world.store.get(job["id"])
    assert row is not None
    message = await world.views.job(row)
    return message.queue_position, message.eta.ToNanoseconds() / 1e9 if message.HasField("eta") else None


async def test_nothing_is_estimated_before_anything_is_measured(world: World) -> None:
    job = await world.job()
    await world.load.refresh()
    assert world.load.queued() == world.load.queued("INTERACTIVE") == 1
    assert world.load.queued("BACKGROUND") == 0
    assert await place(world, job) == (0, None)
    assert world.load.retry_after() == 1
    await succeeded(world, 5.0, timings=FOUND)  # it found its stems: that tells nothing of making them
    assert await place(world, job) == (0, None)


async def test_estimates_follow_from_what_was_measured(world: World) -> None:
    for _ in range(3):
        await succeeded(world, 20.0)  # two seconds a second
    await succeeded(world, 0.0, timings=FOUND)
    first, second = await world.job(), await world.job(seconds=100.0)
    cover = await world.job(kind="COVER", spec={})
    await world.load.refresh()
    # Half of the slots' mean of 15 s each, for each that goes before and the one that must end first; then its own.
    assert await place(world, first) == (0, pytest.approx(7.5 + 20.0, abs=0.01))
    assert await place(world, second) == (1, pytest.approx(15.0 + 200.0, abs=0.01))
    assert await place(world, cover) == (2, None)
    assert world.load.retry_after() == pytest.approx(7.5, abs=0.01)
    # More workers, more slots.
    for _ in range(4):
        await world.set(await world.job(), state="RUNNING")
    await world.load.refresh()
    assert await place(world, second) == (1, pytest.approx(2 * 15 / 4 + 200.0, abs=0.01))
    assert world.load.retry_after() == pytest.approx(15 / 4, abs=0.01)


async def test_only_the_newest_count(world: World) -> None:
    for _ in range(5):
        await succeeded(world, 1000.0)
    for _ in range(JOBS_OF_A_RATE):
        await succeeded(world, 10.0)
    job = await world.job()
    await world.load.refresh()
    assert await place(world, job) == (0, pytest.approx(5 + 10, abs=0.01))


async def test_the_wait_before_another_try_is_bounded(world: World) -> None:
    await succeeded(world, 100_000.0)
    await world.job()
    await world.load.refresh()
    assert world.load.retry_after() == 600


async def test_places_are_those_in_which_jobs_are_claimed(world: World) -> None:
    made = []
    for number in range(24):
        made.append(
            await world.job(
                owner=f"owner {number % 3 and 1}",  # one has twice as many as the other
                priority=("INTERACTIVE", "BACKGROUND")[number % 4 == 0],
                lock=f"separate:{number // 2}" if number > 20 else None,
            )
        )
    rows = [await world.store.get(job["id"]) for job in made]
    world.counting.statements = 0
    messages = await world.views.jobs([row for row in rows if row is not None])
    assert world.counting.statements <= 4  # however many there are
    positions = {message.name: message.queue_position for message in messages}
    assert sorted(positions.values()) == list(range(24))
    claimed = []
    while row := await world.store.claim(["SEPARATE"], background=True, worker="w", ageing_seconds=1e6):
        claimed.append(f"jobs/{row['id']}")
        await world.end(row)
    assert claimed == sorted(positions, key=positions.__getitem__)


async def test_followers_are_seen_as_their_leader_is(world: World) -> None:
    lock = "separate:1"
    leader, follower, other = await world.job(lock=lock), await world.job(lock=lock), await world.job()
    assert (await place(world, other))[0] == 2
    await world.set(leader, state="RUNNING", stage="SEPARATE", fraction=0.25, eta_seconds=12.0)
    messages = await world.views.jobs([follower, other])
    assert [(job.state, job.queue_position) for job in messages] == [(RUNNING, 0), (QUEUED, 0)]
    seen = messages[0]
    assert (seen.stage, seen.fraction, seen.eta.seconds) == (job_pb2.STAGE_SEPARATE, 0.25, 12)
    assert seen.name == f"jobs/{follower['id']}"
    await world.end(leader)
    seen = await world.views.job(follower)
    assert (seen.state, seen.stage, seen.fraction, seen.HasField("eta")) == (QUEUED, 0, 0, False)


async def test_gauges(world: World, stores: Stack) -> None:
    def gauge(name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(f"contrafact_queue_{name}", labels)

    settings = stack_settings(stores)
    await world.set(await world.job(), created_at=dt.datetime.now(dt.UTC) - dt.timedelta(seconds=100))
    await world.job(priority="BACKGROUND")
    cover = await world.set(await world.job(kind="COVER"), state="RUNNING")
    await Load(world.pool, settings, export=True).refresh()
    await world.end(cover)
    await Load(world.pool, settings).refresh()  # exports nothing
    assert gauge("jobs", state="QUEUED", kind="SEPARATE", priority="INTERACTIVE") == 1
    assert gauge("jobs", state="QUEUED", kind="SEPARATE", priority="BACKGROUND") == 1
    assert gauge("jobs", state="RUNNING", kind="COVER", priority="INTERACTIVE") == 1
    oldest = gauge("oldest_seconds", kind="SEPARATE", priority="INTERACTIVE")
    assert oldest is not None
    assert oldest >= 100
    await Load(world.pool, settings, export=True).refresh()
    assert gauge("jobs", state="RUNNING", kind="COVER", priority="INTERACTIVE") is None


async def test_it_measures_by_itself_and_survives_a_database_that_does_not(world: World, stores: Stack) -> None:
    async with Load(world.pool, stack_settings(stores)) as load:
        await world.job()
        while load.queued() != 1:
            await asyncio.sleep(0.05)
        await world.pool.execute("ALTER TABLE jobs RENAME TO hidden")
        await asyncio.sleep(1.5)
        await world.pool.execute("ALTER TABLE hidden RENAME TO jobs")
        assert load.queued() == 1
        await world.job()
        while load.queued() != 2:
            await asyncio.sleep(0.05)
