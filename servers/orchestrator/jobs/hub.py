"""Watching jobs: for each watched job one feed, which all its watchers on this server share.

One task reads the streams of all feeds from Redis, another looks all watched jobs up in PostgreSQL, which makes a
lost Redis harmless. So neither store notices how many watch a job.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from contrafact.v1 import job_pb2

from servers.orchestrator.jobs.events import AWAY, BEGINNING, JobEvents, age
from servers.orchestrator.jobs.feeds import KEPT_EVENTS, LOOK_SECONDS, Feed, Place, is_final, told
from servers.orchestrator.jobs.views import JobViews
from servers.platform import telemetry
from servers.platform.tasks import Background, together

_LOOK_DEADLINE = 10.0
_BLOCK_MS = 200  # also how soon a newly watched job joins the reader


class Listener:
    """Waits for what can be listened to of one job, or for ``progress``, too."""

    def __init__(self, feed: Feed, *, progress: bool) -> None:
        self._feed = feed
        self._progress = progress
        self._heard = self._standing()

    @property
    def fraction(self) -> float:
        """How much of the work is done, 0 to 1, as far as was heard."""
        return self._feed.fraction

    @property
    def ended(self) -> bool:
        """Whether the job has ended, or is not there."""
        return self._feed.final is not None or (self._feed.seen is None and self._feed.looks > 0)

    async def wait(self, timeout: float) -> None:
        """Wait for pieces, results or changes of state since the last call, at most ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self._heard == self._standing():
                    await self._feed.changed()
        except TimeoutError:
            return
        self._heard = self._standing()

    def _standing(self) -> tuple[int, bool]:
        return self._feed.end if self._progress else self._feed.results, self._feed.final is None


class EventHub(Background):
    """The feeds of all jobs that are watched on this server; used as a context manager."""

    def __init__(self, events: JobEvents, views: JobViews) -> None:
        self._events = events
        self._views = views
        self._feeds: dict[UUID, Feed] = {}
        self._wanted = asyncio.Event()

    @asynccontextmanager
    async def _feed(self, job_id: UUID) -> AsyncIterator[Feed]:
        feed = self._feeds.setdefault(job_id, Feed(job_id))
        feed.watchers += 1
        self._wanted.set()
        try:
            yield feed
        finally:
            feed.watchers -= 1
            if not feed.watchers:
                del self._feeds[job_id]

    @asynccontextmanager
    async def listen(self, job_id: UUID, *, progress: bool = False) -> AsyncIterator[Listener]:
        """Hear of what happens to a job, or of its ``progress``, too, for as long as the context lasts."""
        async with self._feed(job_id) as feed:
            yield Listener(feed, progress=progress)

    async def watch(self, job_id: UUID, owner: str, cursor: str) -> AsyncGenerator[job_pb2.JobEvent, None]:
        """The events of a job after a cursor, until its end.

        The job as it is now comes first unless it has ended, and at each change that no event told; last of all comes
        the job that has ended. Close this generator.

        Raises:
            LookupError: ``owner`` has no such job.
            Exception: One of OUTAGES, before anything else: PostgreSQL cannot be asked.
        """
        async with self._feed(job_id) as feed:
            known = await self._seen(feed, owner)
            looks = feed.looks
            if feed.final is None:
                yield told(known, cursor)
            await self._open(feed)
            place = Place(feed, self._events, await self._still_there(feed, cursor))
            while True:
                while events := await place.next():
                    for event in events:
                        if event.HasField("job"):
                            known = event.job
                            if is_final(known):
                                continue  # met in what Redis has: it comes last of all
                        yield event
                if feed.final is not None:
                    yield feed.final
                    return
                if looks == feed.looks:
                    await feed.changed()
                    continue
                looks = feed.looks
                if feed.seen is None:
                    raise LookupError
                if _standing(feed.seen.job) != _standing(known):
                    known = feed.seen.job
                    yield told(known, place.cursor)

    async def _seen(self, feed: Feed, owner: str) -> job_pb2.Job:
        """The job as PostgreSQL said a moment ago, or now."""
        async with asyncio.timeout(_LOOK_DEADLINE), feed.looking:
            if time.monotonic() >= feed.seen_at + LOOK_SECONDS:
                await self._look_up([feed])
        if feed.seen is None or feed.seen.owner != owner:
            raise LookupError
        return feed.seen.job

    async def _open(self, feed: Feed) -> None:
        """Read the end of the stream. Where Redis is away, the reader begins at the beginning once it is back."""
        async with feed.opening:
            if feed.opened:
                return
            try:
                events = await self._events.newest(feed.job_id, KEPT_EVENTS + 1)
            except AWAY as error:
                telemetry.log().warning("events not read", error=type(error).__name__)
            else:
                if len(events) > KEPT_EVENTS:
                    feed.add(events[1:], before=events[0].cursor)
                else:
                    feed.add(events)
            feed.opened = True

    async def _still_there(self, feed: Feed, cursor: str) -> str:
        """``cursor``, or the beginning if Redis has lost what it stood for: then all that is there is newer."""
        if age(cursor) > age(feed.cursor):
            try:
                if age(cursor) > age((await self._events.cursors([feed.job_id]))[feed.job_id]):
                    return BEGINNING
            except AWAY as error:
                telemetry.log().warning("cursor not checked", error=type(error).__name__)
        return cursor

    async def _work(self) -> None:
        await together(self._read(), self._look())

    async def _read(self) -> None:
        while True:
            feeds = {job: feed for job, feed in self._feeds.items() if feed.final is None}
            if not feeds:
                self._wanted.clear()
                await self._wanted.wait()
                continue
            try:
                await asyncio.gather(*map(self._open, feeds.values()))
                lives = {job: feed.life for job, feed in feeds.items()}
                found = await self._events.wait({job: feed.cursor for job, feed in feeds.items()}, _BLOCK_MS)
                for job, events in found.items():
                    if feeds[job].life == lives[job]:
                        feeds[job].add(events)
            except Exception as error:  # whatever it is: PostgreSQL tells meanwhile what matters
                telemetry.log().warning("events not read", error=type(error).__name__)
                await asyncio.sleep(1)

    async def _look(self) -> None:
        while True:
            await self._wanted.wait()
            await asyncio.sleep(LOOK_SECONDS)
            feeds = [feed for feed in self._feeds.values() if feed.final is None]
            for check in (self._look_up, self._check_streams) if feeds else ():
                try:
                    async with asyncio.timeout(_LOOK_DEADLINE):
                        await check(feeds)
                except Exception as error:  # whatever it is, the next round must come
                    telemetry.log().warning("jobs not looked up", error=type(error).__name__)

    async def _look_up(self, feeds: Sequence[Feed]) -> None:
        """Ask PostgreSQL for all these jobs at once."""
        changes = [feed.changes for feed in feeds]
        found = await self._views.look_up([feed.job_id for feed in feeds])
        ended = [feed for feed in feeds if (seen := found.get(feed.job_id)) is not None and is_final(seen.job)]
        await asyncio.gather(*map(self._read_rest, ended))
        now = time.monotonic()
        for feed, before in zip(feeds, changes, strict=True):
            # What was found may be older than an event that came meanwhile.
            feed.look(found.get(feed.job_id), now, tell=feed.changes == before)

    async def _read_rest(self, feed: Feed) -> None:
        """All events of a job that has ended, as far as Redis has them."""
        await self._open(feed)
        try:
            while feed.final is None and (events := await self._events.read(feed.job_id, feed.cursor)):
                feed.add(events)
        except AWAY as error:
            telemetry.log().warning("events not read", error=type(error).__name__)

    async def _check_streams(self, feeds: Sequence[Feed]) -> None:
        """Notice streams that end before what was read of them: Redis has lost something."""
        read = {feed.job_id: (feed, feed.cursor) for feed in feeds if feed.cursor != BEGINNING}
        if not read:
            return
        for job, newest in (await self._events.cursors(list(read))).items():
            feed, cursor = read[job]
            if feed.cursor == cursor and age(newest) < age(cursor):
                feed.lost(newest)


def _standing(job: job_pb2.Job) -> tuple[int, int]:
    return job.state, job.queue_position
