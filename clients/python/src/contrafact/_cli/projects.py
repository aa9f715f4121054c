"""``contrafact projects``: songs prepared for mixing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from contrafact._cli import options
from contrafact._cli.finding import first
from contrafact._cli.output import as_json, json_line, printable, table
from contrafact._cli.running import run

if TYPE_CHECKING:
    from contrafact._client import Client
    from contrafact.v1.project_pb2 import Project

app = typer.Typer(help="Songs prepared for mixing.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help='Project, "projects/{id}".', show_default=False)]
HEADER = ("NAME", "STATE", "TRACK", "DISPLAY NAME")


def _show(found: list[Project], json: bool) -> None:
    from contrafact import _words

    if json:
        for project in found:
            json_line(as_json(project))
        return
    rows = [
        (
            project.name,
            _words.project_state_word(project.state),
            project.track,
            printable(project.display_name),
        )
        for project in found
    ]
    table(HEADER, rows)


@app.command("list")
def list_(
    track: Annotated[str, typer.Option(help='Only projects of this track, "tracks/{id}".')] = "",
    limit: options.Limit = 50,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """List projects, newest first."""

    async def work(client: Client) -> None:
        _show(await first(client.projects(track=track, page_size=min(limit, 1000)), limit), json)

    run(address, work)


@app.command()
def create(
    song: Annotated[str, typer.Argument(help='The recording, or "tracks/{id}".', show_default=False)],
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """Have a song separated and analysed, so that it can be mixed."""

    async def work(client: Client) -> None:
        from contrafact._cli.sounds import uploaded

        _show([await client.create_project(await uploaded(client, song, json))], json)

    run(address, work)


@app.command()
def delete(name: Name, address: options.Address = None) -> None:
    """Delete a project with its mixes. Its track and stems stay."""

    async def work(client: Client) -> None:
        await client.delete_project(name)

    run(address, work)
