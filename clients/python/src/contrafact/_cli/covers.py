"""``contrafact covers``: songs that were given another voice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contrafact._cli import options
from contrafact._cli.finding import first
from contrafact._cli.output import as_json, duration, json_line, size, table
from contrafact._cli.running import run
from contrafact._cli.saving import saved

if TYPE_CHECKING:
    from contrafact._client import Client
    from contrafact.v1.cover_pb2 import Cover

app = typer.Typer(help="Songs that were given another voice.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help='Cover, "covers/{id}".', show_default=False)]
HEADER = ("NAME", "LENGTH", "SIZE", "KEY", "MADE", "VOICE", "TRACK")


def _row(cover: Cover) -> tuple[str, ...]:
    audio = cover.artifact
    return (
        cover.name,
        duration(audio.frames / audio.sample_rate) if audio.sample_rate else "-",
        size(audio.size_bytes),
        f"{cover.semitones:+g}",
        cover.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M"),
        cover.spec.voice,
        cover.spec.track,
    )


@app.command("list")
def list_(
    track: Annotated[str, typer.Option(help='Only covers of this track, "tracks/{id}".')] = "",
    voice: Annotated[str, typer.Option(help='Only covers with this voice, "voices/{id}".')] = "",
    limit: options.Limit = 50,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """List covers, newest first."""

    async def work(client: Client) -> None:
        found = await first(client.covers(track=track, voice=voice, page_size=min(limit, 1000)), limit)
        if json:
            for cover in found:
                json_line(as_json(cover))
        else:
            table(HEADER, [_row(cover) for cover in found])

    run(address, work)


@app.command()
def download(
    name: Name,
    output: options.Output = Path(),
    address: options.Address = None,
) -> None:
    """Download a finished cover."""

    async def work(client: Client) -> None:
        await saved(client, name, output)

    run(address, work)


@app.command()
def delete(name: Name, address: options.Address = None) -> None:
    """Delete a cover and its bytes."""

    async def work(client: Client) -> None:
        await client.delete_cover(name)

    run(address, work)
