"""Watching a job: its events, without loss, over any number of connections."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from contrafact._channel import Connection
from contrafact._errors import ContrafactError, DeadlineExceeded, JobCancelled, JobFailed, Unavailable
from contrafact._retry import Attempts
from contrafact.v1 import job_pb2

FINAL = frozenset({job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED})


async def get_job(connection: Connection, name: str) -> job_pb2.Job:
    """Ask for a job as it is now."""
    return (await connection.unary(connection.jobs.GetJob, job_pb2.GetJobRequest(name=name))).job


def succeeded(job: job_pb2.Job) -> job_pb2.Job:
    """Return the job, or raise JobFailed or JobCancelled if that is how it ended."""
    if job.state == job_pb2.JOB_STATE_FAILED:
        raise JobFailed(job)
    if job.state == job_pb2.JOB_STATE_CANCELLED:
        raise JobCancelled(job)
    return job


async def check_not_lost(connection: Connection, name: str) -> None:
    """Raise JobFailed or JobCancelled if that is how a job ended; who cannot find out may go on trying."""
    with contextlib.suppress(Unavailable, DeadlineExceeded):
        succeeded(await get_job(connection, name))


async def watch(
    connection: Connection, name: str, cursor: str = ""
) -> AsyncGenerator[job_pb2.JobEvent, None]:
    """Yield the events of a job after ``cursor`` until its end; see :meth:`contrafact.JobHandle.watch`."""
    attempts = Attempts(connection)
    last = job_pb2.Job()
    while True:
        request = job_pb2.WatchJobRequest(name=name, cursor=cursor)
        try:
            async with contextlib.aclosing(connection.stream(connection.jobs.WatchJob, request)) as responses:
                async for response in responses:
                    event = response.event
                    is_job = event.HasField("job")
                    known = event.job == last if is_job else event.cursor == cursor != ""
                    if event.cursor and event.cursor != cursor:
                        cursor = event.cursor
                        attempts.progressed()
                    if known:
                        continue  # every watch begins with the job as it is, which is often nothing new
                    if is_job:
                        last = event.job
                    yield event
            if last.state in FINAL:
                return
            raise Unavailable("the watch ended before the job", reason="STREAM_ENDED")
        except ContrafactError as error:
            await attempts.failed(error)
