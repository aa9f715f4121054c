"""What a server knows of a watched job: one feed, which all its watchers share, each at its own place.

A feed keeps the newest events of its job's stream. Who comes late, or is too slow for it, reads the older ones from
Redis at its own pace, slows nobody, and costs no memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from uuid import UUID

from contrafact.v1 import job_pb2

from servers.orchestrator.jobs.events import AWAY, BEGINNING, JobEvents, age
from servers.orchestrator.jobs.store import FINAL_STATES
from servers.orchestrator.jobs.views import Seen
from servers.platform import telemetry

KEPT_EVENTS = 512  # by a feed
LOOK_SECONDS = 2.0  # between two look-ups of a job
_BATCH = 100


def is_final(job: job_pb2.Job) -> bool:
    """Whether nothing happens to the job any more."""
    return job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_") in FINAL_STATES


def told(job: job_pb2.Job, cursor: str) -> job_pb2.JobEvent:
    """That a job is so now, although no event said it; ``cursor`` is that of the event before."""
    event = job_pb2.JobEvent(cursor=cursor, job=job)
    event.event_time.GetCurrentTime()
    return event


class Feed:
    """What is known of a watched job: the end of its stream of events, and what PostgreSQL said last."""

    def __init__(self, job_id: UUID) -> None:
        self.job_id = job_id
        self.watchers = 0
        self.seen: Seen | None = None
        self.seen_at = -LOOK_SECONDS
        self.looks = 0  # look-ups that watchers should hear of
        self.final: job_pb2.JobEvent | None = None  # nothing comes after it
        self.cursor = BEGINNING  # of the last event read from the stream
        self.life = 0  # counts the streams: a Redis that lost everything begins another
        self.results = 0  # events that were more than progress
        self.changes = 0  # of them, changes of state
        self.fraction = 0.0  # of the work that is done
        self.opened = False
        self.opening, self.looking = asyncio.Lock(), asyncio.Lock()
        self._events: deque[job_pb2.JobEvent] = deque()
        self._start = 0  # number of the first event kept
        self._floor = BEGINNING  # cursor of the last event not kept
        self._news = asyncio.Event()

    @property
    def start(self) -> int:
        """The number of the first event that is kept."""
        return self._start

    @property
    def end(self) -> int:
        """The number that the next event will have."""
        return self._start + len(self._events)

    def add(self, events: Iterable[job_pb2.JobEvent], *, before: str | None = None) -> None:
        """Append what was read of the stream; what is here already is left out.

        Args:
            events: Oldest first.
            before: Given by who read the end of the stream only: the cursor of the last event that was not read.
        """
        if before is not None:
            self._floor = self.cursor = before
        for event in events:
            if age(event.cursor) <= age(self.cursor) or self.final is not None:
                continue
            self.cursor = event.cursor
            if event.HasField("progress"):
                self.fraction = event.progress.fraction
            if event.HasField("job"):
                self.fraction = event.job.fraction
                self.changes += 1
                if is_final(event.job):
                    self.final = event
                    continue
            self._events.append(event)
            self.results += not event.HasField("progress")
            if len(self._events) > KEPT_EVENTS:
                self._floor = self._events.popleft().cursor
                self._start += 1
        self.wake()

    def look(self, seen: Seen | None, now: float, *, tell: bool) -> None:
        """This is the job (None: there is none) since ``now``; ``tell`` watchers, too."""
        self.seen, self.seen_at = seen, now
        if seen is not None and tell:
            self.fraction = max(self.fraction, seen.job.fraction)
        if seen is not None and is_final(seen.job) and self.final is None:
            self.final = told(seen.job, self.cursor)
        self.looks += tell
        self.wake()

    def lost(self, newest: str) -> None:
        """Redis has forgotten what was read last: its stream now ends at the cursor ``newest``."""
        if any(event.cursor == newest for event in self._events):  # it lost the newest: what comes now is new
            self.cursor = newest
            return
        self._start = self.end  # it lost everything: whatever is there now is new
        self._events.clear()
        self._floor = self.cursor = BEGINNING
        self.life += 1

    def number_after(self, cursor: str) -> int | None:
        """The number of the first event after a cursor; None if older ones would be missed."""
        if age(cursor) < age(self._floor):
            return None
        number = self.end
        while number > self._start and age(self._events[number - 1 - self._start].cursor) > age(cursor):
            number -= 1
        return number

    def some(self, number: int) -> list[job_pb2.JobEvent]:
        """Some events from that number on, as far as they are there."""
        first = number - self._start
        return [self._events[index] for index in range(first, min(first + _BATCH, len(self._events)))]

    def wake(self) -> None:
        """Have all who wait look again."""
        self._news.set()
        self._news = asyncio.Event()

    async def changed(self) -> None:
        """Wait for anything new from now on."""
        await self._news.wait()


class Place:
    """How far one watcher has read."""

    def __init__(self, feed: Feed, events: JobEvents, cursor: str) -> None:
        self.cursor = cursor
        self._feed = feed
        self._events = events
        self._life = feed.life
        self._number: int | None = None  # of the next event in the feed; None: not known

    async def next(self) -> list[job_pb2.JobEvent]:
        """Events not read yet, oldest first; none: there are no more at this moment."""
        while True:
            if self._life != self._feed.life:
                self._life, self._number, self.cursor = self._feed.life, None, BEGINNING
            if self._number is None or self._number < self._feed.start:
                self._number = self._feed.number_after(self.cursor)
                if self._number is None:  # what is missing is in Redis only
                    try:
                        events = await self._events.read(self._feed.job_id, self.cursor)
                    except AWAY as error:
                        telemetry.log().warning("events not read", error=type(error).__name__)
                        return []
                    if events:
                        self.cursor = events[-1].cursor
                        return events
                    self._number = self._feed.start
            events = self._feed.some(self._number)
            if not events:
                return []
            self._number += len(events)
            # The feed may lag behind the cursor that a watcher brought.
            if events := [event for event in events if age(event.cursor) > age(self.cursor)]:
                self.cursor = events[-1].cursor
                return events
