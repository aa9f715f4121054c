"""Watching jobs: every watcher gets every event once and in order, whatever happens to Redis, and costs nothing."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import grpc
import pytest
from contrafact import Client
from contrafact.v1 import job_pb2, stem_pb2, stem_pb2_grpc
from redis.asyncio import Redis

from servers.local import Stack, running_stack
from servers.media.synthetic import write_song
from servers.orchestrator.jobs.events import AWAY, BEGINNING
from servers.orchestrator.jobs.feeds import KEPT_EVENTS, LOOK_SECONDS
from servers.storage import keys
from servers.storage.database import Row
from servers.storage.migrate import migrate
from tests.conftest import stack_settings
from tests.orchestrator.jobs_world import OWNER, World, world_of

pytestmark = pytest.mark.timeout(240)

RUNNING, SUCCEEDED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_SUCCEEDED


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """PostgreSQL and Valkey."""
    with running_stack(tmp_path_factory.mktemp("stores"), only={"postgres", "valkey"}) as running:
        migrate(stack_settings(running).database_url)
        yield running


@pytest.fixture
async def world(stores: Stack) -> AsyncIterator[World]:
    """A world without jobs."""
    async with world_of(stack_settings(stores)) as made:
        yield made


class Watcher:
    """Somebody who watches a job to its end."""

    def __init__(self, world: World, job: Row, cursor: str = BEGINNING) -> None:
        self.events: list[job_pb2.JobEvent] = []
        self.some = asyncio.Event()
        self._watch = world.hub.watch(job["id"], OWNER, cursor)
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with aclosing(self._watch):
            async for event in self._watch:
                self.events.append(event)
                self.some.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what was heard fulfils the condition."""
        while not condition():
            self.some.clear()
            heard = asyncio.create_task(self.some.wait())
            await asyncio.wait({heard, self._task}, return_when=asyncio.FIRST_COMPLETED)
            heard.cancel()
            assert not self._task.done() or condition(), self._task

    async def ended(self) -> list[job_pb2.JobEvent]:
        """Wait for the end of the stream; returns all events."""
        await self._task
        return self.events

    @property
    def fractions(self) -> list[float]:
        """The progress heard of."""
        return [event.progress.fraction for event in self.events if event.HasField("progress")]


def well_told(events: list[job_pb2.JobEvent], state: job_pb2.JobState.ValueType = SUCCEEDED) -> bool:
    """The end comes last, and only then."""
    ends = [event for event in events if event.HasField("job") and event.job.state not in (RUNNING, 1)]
    return ends == events[-1:] and ends[0].job.state == state


async def all_of(world: World, job: Row) -> list[str]:
    """The cursors of all events of a job that Redis has, but for the end."""
    events = await world.events.newest(job["id"], 10_000)
    return [event.cursor for event in events if not (event.HasField("job") and event.job.state == SUCCEEDED)]


async def test_watchers_cost_nothing(world: World) -> None:
    """Two hundred watchers ask Redis and PostgreSQL as often as one."""
    asked = {}
    for count in (1, 200):
        job = await world.set(await world.job(), state="RUNNING")
        await world.progress(job, *(number / 100 for number in range(20)))
        await world.redis.config_resetstat()
        world.counting.statements = 0
        watchers = [Watcher(world, job) for _ in range(count)]
        for watcher in watchers:
            await watcher.until(lambda watcher=watcher: len(watcher.fractions) == 20)  # type: ignore[misc]
        for number in range(20, 60):
            await world.progress(job, number / 100)
        late = [Watcher(world, job, watchers[0].events[-1].cursor) for _ in range(count)]
        statements = world.counting.statements
        await world.end(job)
        for watcher in watchers:
            events = await watcher.ended()
            assert watcher.fractions == [number / 100 for number in range(60)]
            assert well_told(events)
        for watcher in late:
            assert well_told(await watcher.ended())
        commands = await world.commands()
        reads = sum(commands.get(f"cmdstat_{name}", 0) for name in ("xread", "xrange", "xrevrange"))
        asked[count] = (statements, reads)
    # One read or statement for each watcher would be two hundred more; slow machines make some more rounds.
    assert asked[200][0] <= asked[1][0] + 50
    assert asked[200][1] <= asked[1][1] + 100


async def test_late_resumed_and_finished(world: World) -> None:
    job = await world.set(await world.job(), state="RUNNING")
    await world.tell(job)
    await world.progress(job, 0.1, 0.2, 0.3)
    first = Watcher(world, job)
    await first.until(lambda: first.fractions == [0.1, 0.2, 0.3])
    middle = first.events[-2].cursor
    resumed = Watcher(world, job, middle)
    await resumed.until(lambda: resumed.fractions == [0.3])
    await world.progress(job, 0.4)
    await world.end(job)
    await world.tell(job)
    await world.progress(job, 0.5)  # of an attempt that does not know yet: nobody hears it
    late, after = Watcher(world, job), Watcher(world, job, middle)
    for watcher in (first, resumed, late, after):
        assert well_told(await watcher.ended())
    assert first.fractions == late.fractions == [0.1, 0.2, 0.3, 0.4]
    assert resumed.fractions == after.fractions == [0.3, 0.4]
    # What has ended does not begin with itself, and the cursors of one watcher are as good as those of another.
    assert [event.cursor for event in late.events] == [event.cursor for event in first.events[1:]]
    end = Watcher(world, job, late.events[-1].cursor)
    assert [event.job.state for event in await end.ended()] == [SUCCEEDED]


async def test_slow_watchers_miss_nothing_and_cost_no_memory(world: World) -> None:
    count = 3 * KEPT_EVENTS
    job = await world.set(await world.job(), state="RUNNING")
    async with aclosing(world.hub.watch(job["id"], OWNER, BEGINNING)) as slow:
        assert (await anext(slow)).job.state == RUNNING
        await world.progress(job, *(number / count for number in range(10)))
        heard = [await anext(slow)]
        await world.progress(job, *(number / count for number in range(10, count)))
        quick = Watcher(world, job)
        await quick.until(lambda: len(quick.fractions) == count)  # not kept waiting by the other
        assert len(world.hub._feeds[job["id"]]._events) == KEPT_EVENTS
        await world.end(job)
        await quick.ended()
        heard += [event async for event in slow]
    assert [event.progress.fraction for event in heard[:-1]] == quick.fractions
    assert quick.fractions == [number / count for number in range(count)]
    assert well_told(heard)


async def test_who_comes_late_to_a_long_story_hears_all_of_it(world: World) -> None:
    count = 2 * KEPT_EVENTS + 100  # more than a feed keeps, more than one read of Redis gives
    job = await world.set(await world.job(), state="RUNNING")
    await world.progress(job, *(number / count for number in range(count)))
    cursors = await all_of(world, job)
    await world.end(job)
    await world.tell(job)
    for start in (0, 50, count - KEPT_EVENTS - 1, count - KEPT_EVENTS, count - KEPT_EVENTS + 1, count - 1):
        watcher = Watcher(world, job, cursors[start - 1] if start else BEGINNING)
        events = await watcher.ended()
        assert [event.cursor for event in events[:-1]] == cursors[start:]
        assert well_told(events)


async def test_redis_forgets_everything(world: World) -> None:
    job = await world.set(await world.job(), state="RUNNING")
    await world.progress(job, 0.1)
    watcher = Watcher(world, job)
    await watcher.until(lambda: watcher.fractions == [0.1])
    await world.redis.flushall()
    await world.progress(job, 0.2)
    await watcher.until(lambda: watcher.fractions == [0.1, 0.2])
    await world.redis.flushall()
    await world.end(job)
    assert well_told(await watcher.ended())


async def future(world: World, job: Row, *fractions: float) -> None:
    """Publish progress as a Redis would whose clock is centuries ahead."""
    for number, fraction in enumerate(fractions):
        event = job_pb2.JobEvent(progress=job_pb2.Progress(fraction=fraction))
        cursor = f"9999999999999-{number}"
        await world.redis.xadd(keys.job_events(job["id"]), {"event": event.SerializeToString()}, id=cursor)


async def test_another_redis_whose_cursors_are_older(world: World) -> None:
    job = await world.set(await world.job(), state="RUNNING")
    await future(world, job, 0.1, 0.2)
    watcher = Watcher(world, job)
    await watcher.until(lambda: watcher.fractions == [0.1, 0.2])
    await world.redis.flushall()
    await world.progress(job, 0.3)
    await watcher.until(lambda: watcher.fractions == [0.1, 0.2, 0.3])
    # Who comes back with a cursor of the old one hears all that the new one has.
    for cursor in (watcher.events[-2].cursor, "99999999999999999999999-0"):
        back = Watcher(world, job, cursor)
        await back.until(lambda back=back: back.fractions == [0.3])  # type: ignore[misc]
    await world.progress(job, 0.4)
    await world.end(job)
    assert well_told(await watcher.ended())
    assert well_told(await back.ended())
    assert watcher.fractions == [0.1, 0.2, 0.3, 0.4]
    assert back.fractions == [0.3, 0.4]


async def test_a_redis_that_lost_its_last_second(world: World) -> None:
    """Nothing is heard twice, and what comes then is heard."""
    job = await world.set(await world.job(), state="RUNNING")
    key = keys.job_events(job["id"])
    await world.progress(job, 0.1)
    before = await world.redis.dump(key)
    assert before is not None
    await world.progress(job, 0.2)
    watcher = Watcher(world, job)
    await watcher.until(lambda: watcher.fractions == [0.1, 0.2])
    await world.redis.restore(key, 0, before, replace=True)
    while world.hub._feeds[job["id"]].cursor == watcher.events[-1].cursor:  # not noticed yet
        await asyncio.sleep(0.05)
    await world.progress(job, 0.3)
    await world.end(job)
    assert well_told(await watcher.ended())
    assert watcher.fractions == [0.1, 0.2, 0.3]


async def hang(stores: Stack) -> Callable[[], Awaitable[None]]:
    pid = stores.processes["valkey"].pid
    os.kill(pid, signal.SIGSTOP)

    async def again() -> None:
        os.kill(pid, signal.SIGCONT)

    return again


async def kill(stores: Stack) -> Callable[[], Awaitable[None]]:
    os.kill(stores.processes["valkey"].pid, signal.SIGKILL)

    async def again() -> None:
        async with Redis.from_url(stack_settings(stores).redis_url) as redis:
            while True:
                try:
                    await redis.ping()
                    return
                except AWAY:
                    await asyncio.sleep(0.1)

    return again


@pytest.mark.parametrize("trouble", [hang, kill])
async def test_redis_is_away(
    world: World, stores: Stack, trouble: Callable[[Stack], Awaitable[Callable[[], Awaitable[None]]]]
) -> None:
    job = await world.set(await world.job(), state="RUNNING")
    other = await world.set(await world.job(), state="RUNNING")
    await world.progress(job, 0.1)
    watcher = Watcher(world, job)
    await watcher.until(lambda: watcher.fractions == [0.1])
    again = await trouble(stores)
    try:
        resumed, begun = Watcher(world, job, watcher.events[-1].cursor), Watcher(world, other)
        await begun.until(lambda: len(begun.events) == 1)
        await world.end(job)
        for each in (watcher, resumed, Watcher(world, job)):
            assert well_told(await each.ended())
    finally:
        await again()
    # Who came while it was away hears of what happens when it is back.
    while not begun.fractions:
        await world.progress(other, 0.5)
        await asyncio.sleep(0.1)
    await world.end(other)
    assert well_told(await begun.ended())


async def test_changes_that_no_event_tells(world: World) -> None:
    ahead, job = await world.job(), await world.job()
    watcher = Watcher(world, job)
    await watcher.until(lambda: len(watcher.events) == 1)
    assert (watcher.events[0].job.state, watcher.events[0].job.queue_position) == (job_pb2.JOB_STATE_QUEUED, 1)
    await world.end(ahead, "CANCELLED")
    await watcher.until(lambda: len(watcher.events) == 2)
    await world.set(job, state="RUNNING")
    await watcher.until(lambda: len(watcher.events) == 3)
    await world.end(job, "FAILED")
    events = await watcher.ended()
    assert [(event.job.state, event.job.queue_position) for event in events[1:3]] == [(1, 0), (RUNNING, 0)]
    assert well_told(events, job_pb2.JOB_STATE_FAILED)


async def test_there_is_no_such_job(world: World) -> None:
    job = await world.job()
    for job_id, owner in ((uuid.uuid4(), OWNER), (job["id"], "somebody else")):
        async with aclosing(world.hub.watch(job_id, owner, BEGINNING)) as events:
            with pytest.raises(LookupError):
                await anext(events)
    watcher = Watcher(world, job)
    await watcher.until(lambda: len(watcher.events) == 1)
    await world.pool.execute("DELETE FROM jobs WHERE id = $1", job["id"])
    with pytest.raises(LookupError):
        await watcher.ended()


async def test_nobody_watches_any_more(world: World) -> None:
    job = await world.set(await world.job(), state="RUNNING")
    async with aclosing(world.hub.watch(job["id"], OWNER, BEGINNING)) as events:
        await anext(events)
    while world.hub._wanted.is_set():  # the reader's last round
        await asyncio.sleep(0.05)
    await world.redis.config_resetstat()
    world.counting.statements = 0
    await asyncio.sleep(LOOK_SECONDS + 0.5)
    assert "cmdstat_xread" not in await world.commands()
    assert world.counting.statements == 0


async def test_listeners_wake_for_what_can_be_heard(world: World) -> None:
    job = await world.set(await world.job(), state="RUNNING")
    async with world.hub.listen(job["id"]) as listener:
        await world.progress(job, 0.1)
        waiting = asyncio.create_task(listener.wait(60))
        while world.hub._feeds[job["id"]].cursor == BEGINNING:
            await asyncio.sleep(0.05)
        assert not waiting.done()
        await world.events.publish([job["id"]], job_pb2.JobEvent(piece=job_pb2.LivePiece(size_bytes=1)))
        await waiting
        waiting = asyncio.create_task(listener.wait(60))
        await world.end(job)
        await waiting


async def test_listeners_of_progress_hear_how_far_a_job_is(world: World) -> None:
    job = await world.set(await world.job(), state="RUNNING")
    async with world.hub.listen(job["id"], progress=True) as listener, asyncio.timeout(100):
        assert listener.fraction == 0
        await world.progress(job, 0.25, 0.5)
        while listener.fraction < 0.5:
            await listener.wait(60)
        assert not listener.ended
        await world.end(job)
        while not listener.ended:
            await listener.wait(60)
    async with world.hub.listen(uuid.uuid4(), progress=True) as nothing, asyncio.timeout(100):
        while not nothing.ended:  # there is no such job
            await nothing.wait(1)


async def test_the_signal_of_success(world: World) -> None:
    job = await world.job()
    async with world.redis.pubsub() as subscriber:
        await subscriber.subscribe(f"SeparateReady:{job['track_id']}", f"CoverReady:{job['track_id']}")
        await world.events.ready("SEPARATE", None, job["id"])
        await world.events.ready("SEPARATE", uuid.uuid4(), job["id"])
        await world.events.ready("COVER", job["track_id"], job["id"])
        await world.events.ready("SEPARATE", job["track_id"], job["id"])
        heard: list[tuple[str, str]] = []
        while len(heard) < 2:
            message = await subscriber.get_message(ignore_subscribe_messages=True, timeout=10)
            if message is not None:
                heard.append((message["channel"].decode().partition(":")[0], message["data"].decode()))
    assert heard == [("CoverReady", f"jobs/{job['id']}"), ("SeparateReady", f"jobs/{job['id']}")]


async def test_followers_share_what_their_leader_does(slow_stack: Stack, slow_client: Client, tmp_path: Path) -> None:
    """The same separation asked for twice: the second is told and streamed the first one's work, while it waits."""
    write_song(tmp_path / "song.flac", seconds=90.0, seed=4711)
    track = await slow_client.upload(tmp_path / "song.flac")
    leader = await slow_client.separate(track, stems=["vocals"])
    async for event in leader.watch():
        if event.HasField("piece"):
            break
    follower = await slow_client.separate(track, stems=["vocals"])
    async with grpc.aio.insecure_channel(slow_stack.api_address) as channel:
        request = stem_pb2.StreamStemsRequest(job=follower.name)
        stream = stem_pb2_grpc.StemServiceStub(channel).StreamStems(request)
        live, told = bytearray(), False
        async for part in stream:
            live += part.chunk.data
            if not told:
                # These bytes are the leader's, and so is what is told of the follower.
                assert part.chunk.data[:4] == b"fLaC"
                jobs = {job.name: job for job in (await leader.refresh(), await follower.refresh())}
                async for event in follower.watch():
                    told = event.job.state == RUNNING
                    break
                assert told
                assert {job.state for job in jobs.values()} == {RUNNING}
                assert jobs[follower.name].attempt == 0
                while (await follower.refresh()).fraction == 0:  # it is stored with the heartbeat
                    await asyncio.sleep(0.1)
    ended = [await leader.wait(), await follower.wait()]
    assert [job.state for job in ended] == [SUCCEEDED, SUCCEEDED]
    assert ended[0].artifacts == ended[1].artifacts
    assert hashlib.sha256(live).hexdigest() == ended[1].artifacts[0].sha256
