"""JobService."""

from __future__ import annotations

from collections.abc import AsyncIterator

from contrafact.v1 import job_pb2, job_pb2_grpc

from servers.orchestrator.api.resources import page_limit, read_time_token, resource_id, write_token
from servers.orchestrator.jobs import messages
from servers.orchestrator.jobs.events import BEGINNING, EventHub, JobEvents
from servers.orchestrator.jobs.store import FINAL_STATES, JobStore
from servers.platform.errors import not_found
from servers.platform.identity import principal
from servers.platform.interceptors import Context
from servers.storage.database import Row

# How long a silent stream of events is believed before PostgreSQL is asked.
SILENCE_SECONDS = 2.0


async def find_job(store: JobStore, name: str) -> Row:
    """The caller's job of that resource name, or NOT_FOUND."""
    row = await store.get(resource_id("job", name), principal().id)
    if row is None:
        raise not_found("job", name)
    return row


async def describe(store: JobStore, row: Row) -> job_pb2.Job:
    """A job with its artifacts and its place in the queue."""
    return messages.job(row, await store.results([row["id"]]), await store.queue_position(row))


class JobService(job_pb2_grpc.JobServiceServicer):
    """Look-ups, watching and cancelling of jobs."""

    def __init__(self, store: JobStore, events: JobEvents, hub: EventHub) -> None:
        self._store = store
        self._events = events
        self._hub = hub

    async def GetJob(self, request: job_pb2.GetJobRequest, context: Context) -> job_pb2.GetJobResponse:
        row = await find_job(self._store, request.name)
        return job_pb2.GetJobResponse(job=await describe(self._store, row))

    async def ListJobs(self, request: job_pb2.ListJobsRequest, context: Context) -> job_pb2.ListJobsResponse:
        limit = page_limit(request.page_size)
        rows = await self._store.page(
            principal().id,
            limit + 1,
            read_time_token(request.page_token),
            [job_pb2.JobState.Name(state).removeprefix("JOB_STATE_") for state in request.states],
            resource_id("track", request.track) if request.track else None,
        )
        token = ""
        if len(rows) > limit:
            rows = rows[:limit]
            token = write_token(rows[-1]["created_at"].isoformat(), str(rows[-1]["id"]))
        results = await self._store.results([row["id"] for row in rows])
        jobs = [
            messages.job(
                row,
                [result for result in results if result["job_id"] == row["id"]],
                await self._store.queue_position(row),
            )
            for row in rows
        ]
        return job_pb2.ListJobsResponse(jobs=jobs, next_page_token=token)

    async def WatchJob(
        self, request: job_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[job_pb2.WatchJobResponse]:
        row = await find_job(self._store, request.name)
        cursor = request.cursor or BEGINNING
        known: job_pb2.Job | None = None
        async with self._hub.listen(row["id"], cursor) as listener:
            news = False
            while True:
                if not news:  # at first, and whenever the stream is silent: it may have lost something
                    row = await find_job(self._store, request.name)
                    job = await describe(self._store, row)
                    if row["state"] not in FINAL_STATES and (
                        known is None or (job.state, job.queue_position) != (known.state, known.queue_position)
                    ):
                        yield _response(cursor, job)
                    known = job
                while events := await self._events.read(row["id"], cursor):
                    for event in events:
                        cursor = event.cursor
                        if event.HasField("job"):
                            known = event.job
                            if _final(event.job):
                                continue  # nothing may come after it
                        yield job_pb2.WatchJobResponse(event=event)
                if known is not None and _final(known):
                    yield _response(cursor, known)
                    return
                news = await listener.wait(SILENCE_SECONDS)

    async def CancelJob(self, request: job_pb2.CancelJobRequest, context: Context) -> job_pb2.CancelJobResponse:
        row = await self._store.cancel(resource_id("job", request.name), principal().id)
        if row is None:
            raise not_found("job", request.name)
        job = await describe(self._store, row)
        if row["state"] == "CANCELLED":
            await self._events.publish(row["id"], job_pb2.JobEvent(job=job))
        return job_pb2.CancelJobResponse(job=job)


def _final(job: job_pb2.Job) -> bool:
    return job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_") in FINAL_STATES


def _response(cursor: str, job: job_pb2.Job) -> job_pb2.WatchJobResponse:
    event = job_pb2.JobEvent(cursor=cursor, job=job)
    event.event_time.GetCurrentTime()
    return job_pb2.WatchJobResponse(event=event)
