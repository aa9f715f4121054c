"""``contrafact mixes``: songs whose stems are played with styles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contrafact._cli import options
from contrafact._cli.finding import first
from contrafact._cli.output import as_json, json_line, printable, size, table
from contrafact._cli.running import run
from contrafact._cli.saving import saved

if TYPE_CHECKING:
    from contrafact._client import Client
    from contrafact.v1.mix_pb2 import Mix

app = typer.Typer(help="Songs whose stems are played with styles.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help='Mix, "mixes/{id}".', show_default=False)]
HEADER = ("NAME", "STATE", "REVISION", "SIZE", "PROJECT", "DISPLAY NAME")


def _row(mix: Mix) -> tuple[str, ...]:
    from contrafact import _words

    return (
        mix.name,
        _words.mix_state_word(mix.state),
        str(mix.revision),
        size(mix.artifact.size_bytes) if mix.HasField("artifact") else "-",
        mix.project,
        printable(mix.display_name),
    )


@app.command("list")
def list_(
    project: Annotated[str, typer.Option(help='Only mixes of this project, "projects/{id}".')] = "",
    limit: options.Limit = 50,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """List mixes, newest first."""

    async def work(client: Client) -> None:
        found = await first(client.mixes(project=project, page_size=min(limit, 1000)), limit)
        if json:
            for mix in found:
                json_line(as_json(mix))
        else:
            table(HEADER, [_row(mix) for mix in found])

    run(address, work)


@app.command()
def download(
    name: Name,
    output: options.Output = Path(),
    address: options.Address = None,
) -> None:
    """Download the newest finished rendering of a mix."""

    async def work(client: Client) -> None:
        await saved(client, name, output)

    run(address, work)


@app.command()
def delete(name: Name, address: options.Address = None) -> None:
    """Delete a mix and its bytes."""

    async def work(client: Client) -> None:
        await client.delete_mix(name)

    run(address, work)
