"""``contrafact jobs``: work on the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from contrafact._cli import options
from contrafact._cli.finding import first
from contrafact._cli.output import as_json, json_line, table
from contrafact._cli.progress import reporter
from contrafact._cli.running import run

if TYPE_CHECKING:
    from contrafact._client import Client
    from contrafact.v1.job_pb2 import Attempt, Job

app = typer.Typer(help="Work on the server.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help='Job, "jobs/{id}".', show_default=False)]
HEADER = ("NAME", "KIND", "STATE", "DONE", "STAGE", "CREATED", "TRACK")
ATTEMPTS = ("ATTEMPT", "OUTCOME", "REASON", "TOOK")


def _row(job: Job) -> tuple[str, ...]:
    from contrafact import _words

    return (
        job.name,
        _words.kind_word(job.kind) or "-",
        _words.state_word(job.state),
        f"{job.fraction:.0%}",
        job.error.reason or _words.stage_word(job.stage) or "-",
        job.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M"),
        job.separation.track or job.cover.track or job.analysis.track or job.track_import.track or "-",
    )


def _attempt(attempt: Attempt) -> tuple[str, ...]:
    from contrafact.v1.job_pb2 import Attempt

    seconds = (attempt.end_time.ToDatetime() - attempt.start_time.ToDatetime()).total_seconds()
    outcome = Attempt.Outcome.Name(attempt.outcome).removeprefix("OUTCOME_").lower().replace("_", " ")
    return str(attempt.number), outcome, attempt.reason or "-", f"{seconds:.1f} s"


def _show(jobs: list[Job], json: bool) -> None:
    if json:
        for job in jobs:
            json_line(as_json(job))
    else:
        table(HEADER, [_row(job) for job in jobs])


@app.command("list")
def list_(
    state: Annotated[
        list[str] | None,
        typer.Option(help="Only queued, running, succeeded, failed or cancelled ones; may be repeated."),
    ] = None,
    track: Annotated[str, typer.Option(help='Only jobs of this track, "tracks/{id}".')] = "",
    limit: options.Limit = 50,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """List jobs, newest first."""

    async def work(client: Client) -> None:
        found = await first(client.jobs(states=state or (), track=track, page_size=min(limit, 1000)), limit)
        _show(found, json)

    run(address, work)


@app.command()
def get(name: Name, address: options.Address = None, json: options.Json = False) -> None:
    """Show one job, and the attempts at it that have ended."""

    async def work(client: Client) -> None:
        job = (await client.job(name)).job
        _show([job], json)
        if job.attempts and not json:
            table(ATTEMPTS, [_attempt(each) for each in job.attempts])

    run(address, work)


@app.command()
def watch(name: Name, address: options.Address = None, json: options.Json = False) -> None:
    """Follow a job to its end. Ctrl-C stops following; the job goes on."""

    async def work(client: Client) -> None:
        job = await client.job(name)
        show = reporter(json)
        try:
            ended = await job.wait(show.job_event)
        finally:
            show.close()
        if not json:
            _show([ended], json)

    run(address, work)


@app.command()
def cancel(name: Name, address: options.Address = None, json: options.Json = False) -> None:
    """Cancel a job."""

    async def work(client: Client) -> None:
        _show([await (await client.job(name)).cancel()], json)

    run(address, work)
