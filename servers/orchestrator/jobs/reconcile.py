"""Puts right what crashes and lost queues leave behind, from what PostgreSQL says: a list of chores."""

from __future__ import annotations

import datetime as dt
from contextlib import suppress
from functools import partial
from typing import Any

from servers.orchestrator.jobs.chores import Chore
from servers.orchestrator.jobs.findings import CleanUp, Stores
from servers.orchestrator.jobs.leftovers import half_transfers, live_pieces, stale_uploads
from servers.orchestrator.jobs.orphans import orphans
from servers.orchestrator.jobs.queue import WAKING, JobQueue, QueueUnavailable
from servers.orchestrator.jobs.retention import ended_jobs, ended_scans, idle_layers, idle_stems
from servers.orchestrator.jobs.store import JobStore
from servers.orchestrator.styles.removal import lost_libraries, unused_libraries, unused_recordings
from servers.platform import telemetry

DISPATCH = "dispatch"
_ROUNDS_SECONDS = 3.0  # some rounds of it, on a machine that is busy
_HOUR = 3600.0

# In this order: what the first leave without a row or an object, the next would find.
CLEAN_UPS: dict[str, CleanUp] = {
    "live_pieces": live_pieces,
    "stale_uploads": stale_uploads,
    "ended_jobs": ended_jobs,
    "ended_scans": ended_scans,
    "idle_stems": idle_stems,
    "idle_layers": idle_layers,
    "unused_libraries": unused_libraries,
    "unused_recordings": unused_recordings,
    "half_transfers": half_transfers,
    "orphans": orphans,
    "lost_libraries": lost_libraries,
}


def chores(stores: Stores, jobs: JobStore, queue: JobQueue) -> list[Chore]:
    """All that a worker sees to besides jobs."""
    settings = stores.settings
    # Interval and deadline in seconds.
    times = dict.fromkeys(CLEAN_UPS, (settings.tidy_seconds, _HOUR)) | {
        "live_pieces": (5.0, 300.0),  # the bulk of what a job stores
        "half_transfers": (settings.orphans_seconds, _HOUR),
        "orphans": (settings.orphans_seconds, 6 * _HOUR),
    }
    return [
        Chore(DISPATCH, 1.0, 3.0, partial(dispatch, stores, jobs, queue)),
        *(Chore(name, *times[name], partial(clean_up, work, stores)) for name, work in CLEAN_UPS.items()),
    ]


async def dispatch(stores: Stores, jobs: JobStore, queue: JobQueue) -> dict[str, Any]:
    """Take jobs from workers that are gone, and wake workers for those that wait although the queue has lost them."""
    lost = []
    lease = stores.settings.lease_seconds
    # When PostgreSQL was away, nobody could give a sign of life: workers have the time until the next round for it.
    # Half, since a sign of life may be older than the last round.
    if await stores.pool.fetchval(
        "SELECT ran_at > now() - $2::interval FROM chores WHERE name = $1",
        DISPATCH,
        dt.timedelta(seconds=max(lease / 2, _ROUNDS_SECONDS)),
    ):
        lost = await jobs.requeue_lost(lease, stores.settings.max_job_failures)
    due = await jobs.due(WAKING)
    with suppress(QueueUnavailable):  # workers look for themselves now and then
        await queue.wake(due)
    return {"lost": len(lost), "due": due}


async def clean_up(work: CleanUp, stores: Stores) -> dict[str, Any]:
    """Clean up, and log what was found."""
    findings = await work(stores, False)
    for finding in findings:
        if finding.found > finding.removed:
            telemetry.log().error("missing, and cannot be made again", **finding.as_json())
        elif finding.found:
            telemetry.log().info("cleaned up", **finding.as_json())
    return {"findings": [finding.as_json() for finding in findings if finding.found]}
