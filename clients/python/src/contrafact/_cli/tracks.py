"""``contrafact tracks``: uploaded recordings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contrafact._cli import options
from contrafact._cli.finding import first
from contrafact._cli.output import as_json, duration, json_line, printable, size, table
from contrafact._cli.progress import reporter
from contrafact._cli.running import run
from contrafact._cli.saving import saved

if TYPE_CHECKING:
    from contrafact._client import Client
    from contrafact.v1.track_pb2 import Track

app = typer.Typer(help="Uploaded recordings.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help='Track, "tracks/{id}".', show_default=False)]
HEADER = ("NAME", "LENGTH", "SIZE", "KIND", "UPLOADED", "DISPLAY NAME")


def _row(track: Track) -> tuple[str, ...]:
    audio = track.audio
    return (
        track.name,
        duration(audio.seconds),
        size(track.size_bytes),
        f"{audio.container} {audio.sample_rate} Hz",
        track.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M"),
        printable(track.display_name),
    )


def _show(tracks: list[Track], json: bool) -> None:
    if json:
        for track in tracks:
            json_line(as_json(track))
    else:
        table(HEADER, [_row(track) for track in tracks])


@app.command("list")
def list_(
    contains: Annotated[str, typer.Option(help="Only tracks whose display name contains this.")] = "",
    limit: options.Limit = 50,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """List tracks, newest first."""

    async def work(client: Client) -> None:
        found = await first(client.tracks(display_name_contains=contains, page_size=min(limit, 1000)), limit)
        _show(found, json)

    run(address, work)


@app.command()
def get(name: Name, address: options.Address = None, json: options.Json = False) -> None:
    """Show one track."""

    async def work(client: Client) -> None:
        _show([await client.track(name)], json)

    run(address, work)


@app.command()
def update(
    name: Name,
    display_name: Annotated[
        str | None, typer.Option("--name", help="What to call it.", show_default=False)
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="All its tags, one each; an empty one: none.", show_default=False)
    ] = None,
    mark: Annotated[
        list[str] | None,
        typer.Option(
            help="studio, karaoke, or an empty one: none. Its stems are made and kept.", show_default=False
        ),
    ] = None,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """Change what a track is called, its tags, and what its stems are kept for."""

    async def work(client: Client) -> None:
        tags = None if tag is None else [each for each in tag if each]
        if mark is not None:
            job = await client.mark_track(name, *(each for each in mark if each))
            if job is not None:
                typer.echo(f"{job.name} makes its stems", err=True)
        if mark is None or display_name is not None or tags is not None:
            await client.update_track(name, display_name=display_name, tags=tags)
        _show([await client.track(name)], json)

    run(address, work)


@app.command()
def delete(
    name: Name,
    cancel_jobs: Annotated[
        bool, typer.Option("--cancel-jobs", help="Cancel its unfinished jobs instead of refusing.")
    ] = False,
    address: options.Address = None,
) -> None:
    """Delete a track, its bytes and its stems."""

    async def work(client: Client) -> None:
        await client.delete_track(name, cancel_jobs=cancel_jobs)

    run(address, work)


@app.command()
def download(
    name: Name,
    output: options.Output = Path(),
    address: options.Address = None,
) -> None:
    """Download the recording as it was uploaded."""

    async def work(client: Client) -> None:
        await saved(client, name, output)

    run(address, work)


@app.command()
def upload(
    file: Annotated[
        Path,
        typer.Argument(help="The recording.", exists=True, dir_okay=False, readable=True, show_default=False),
    ],
    display_name: Annotated[
        str | None, typer.Option("--name", help="What to call it.", show_default="the file's name")
    ] = None,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """Upload a recording."""

    async def work(client: Client) -> None:
        show = reporter(json)
        try:
            track = await client.upload(
                file,
                display_name=display_name,
                progress=lambda done, total: show.bytes_done("upload", done, total),
            )
        finally:
            show.close()
        if json:
            show.about("track", track)
        else:
            typer.echo(track.name)

    run(address, work)
