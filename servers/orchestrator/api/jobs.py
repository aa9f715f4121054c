"""JobService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from contrafact.v1 import job_pb2, job_pb2_grpc

from servers.orchestrator.api.resources import page_limit, read_time_token, resource_id, time_page
from servers.orchestrator.jobs.events import BEGINNING, JobEvents
from servers.orchestrator.jobs.hub import EventHub
from servers.orchestrator.jobs.store import JobStore
from servers.orchestrator.jobs.views import JobViews
from servers.platform.errors import not_found
from servers.platform.identity import principal
from servers.platform.interceptors import Context
from servers.storage.database import Row


async def find_job(store: JobStore, name: str) -> Row:
    """The caller's job of that resource name, or NOT_FOUND."""
    row = await store.get(resource_id("job", name), principal().id)
    if row is None:
        raise not_found("job", name)
    return row


class JobService(job_pb2_grpc.JobServiceServicer):
    """Look-ups, watching and cancelling of jobs."""

    def __init__(self, store: JobStore, views: JobViews, events: JobEvents, hub: EventHub) -> None:
        self._store = store
        self._views = views
        self._events = events
        self._hub = hub

    async def GetJob(self, request: job_pb2.GetJobRequest, context: Context) -> job_pb2.GetJobResponse:
        row = await find_job(self._store, request.name)
        return job_pb2.GetJobResponse(job=await self._views.job(row))

    async def ListJobs(self, request: job_pb2.ListJobsRequest, context: Context) -> job_pb2.ListJobsResponse:
        limit = page_limit(request.page_size)
        rows = await self._store.page(
            principal().id,
            limit + 1,
            read_time_token(request.page_token),
            [job_pb2.JobState.Name(state).removeprefix("JOB_STATE_") for state in request.states],
            resource_id("track", request.track) if request.track else None,
        )
        rows, token = time_page(rows, limit)
        return job_pb2.ListJobsResponse(jobs=await self._views.jobs(rows), next_page_token=token)

    async def WatchJob(
        self, request: job_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[job_pb2.WatchJobResponse]:
        job_id = resource_id("job", request.name)
        async with aclosing(self._hub.watch(job_id, principal().id, request.cursor or BEGINNING)) as events:
            try:
                async for event in events:
                    yield job_pb2.WatchJobResponse(event=event)
            except LookupError:
                raise not_found("job", request.name) from None

    async def CancelJob(self, request: job_pb2.CancelJobRequest, context: Context) -> job_pb2.CancelJobResponse:
        row = await self._store.cancel(resource_id("job", request.name), principal().id)
        if row is None:
            raise not_found("job", request.name)
        job = await self._views.job(row)
        if row["state"] == "CANCELLED":
            await self._events.publish([row["id"]], job_pb2.JobEvent(job=job))
        return job_pb2.CancelJobResponse(job=job)
