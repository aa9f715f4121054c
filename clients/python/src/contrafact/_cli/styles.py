"""``contrafact styles``: sounds that stems can be played with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contrafact._cli import options
from contrafact._cli.finding import find_style, first
from contrafact._cli.following import cancelling, reporting
from contrafact._cli.output import as_json, duration, json_line, printable, table
from contrafact._cli.running import run
from contrafact._cli.saving import saved

if TYPE_CHECKING:
    from contrafact._cli.progress import Reporter
    from contrafact._client import Client
    from contrafact.v1.grain_pb2 import Cut
    from contrafact.v1.style_pb2 import Style

app = typer.Typer(help="Sounds that stems can be played with.", no_args_is_help=True)
Which = Annotated[
    str, typer.Argument(help='The style: "styles/{id}", its name, or part of its name.', show_default=False)
]
HEADER = ("NAME", "STATE", "GRAINS", "PITCHED", "LENGTH", "PITCH", "DISPLAY NAME")
GRAINS = ("START", "LENGTH", "PITCH", "PEAK", "BRIGHTNESS")


def _row(style: Style) -> tuple[str, ...]:
    from contrafact import _words

    pitch = f"{style.low_hz:.0f}-{style.high_hz:.0f} Hz" if style.HasField("low_hz") else "-"
    return (
        style.name,
        _words.style_state_word(style.state),
        str(style.grain_count or "-"),
        str(style.pitched_count) if style.grain_count else "-",
        duration(style.grain_seconds),
        pitch,
        printable(style.display_name),
    )


def show_styles(found: list[Style], json: bool) -> None:
    """Print styles."""
    if json:
        for style in found:
            json_line(as_json(style))
    else:
        table(HEADER, [_row(style) for style in found])


async def added(client: Client, path: Path, name: str | None, cut: Cut | None, show: Reporter) -> Style:
    """Upload a sound, wait until it is cut, and return the style."""
    style, job = await client.upload_style(
        path,
        display_name=name,
        cut=cut,
        progress=lambda done, total: show.bytes_done("upload", done, total),
    )
    async with cancelling(job, show):
        await job.wait(show.job_event)
    return await client.style(style.name)


@app.command()
def add(
    sound: Annotated[
        Path,
        typer.Argument(help="The sound.", exists=True, dir_okay=False, readable=True, show_default=False),
    ],
    name: Annotated[
        str | None, typer.Option(help="What to call the style.", show_default="the file's name")
    ] = None,
    segmentation: Annotated[
        str, typer.Option(help="How what sounds between silences is cut further: whole, onsets or fixed.")
    ] = "whole",
    grain_ms: Annotated[
        float | None,
        typer.Option(min=12, max=10_000, help="Length of fixed grains in ms.", show_default="120"),
    ] = None,
    jitter: Annotated[
        float, typer.Option(min=0, max=0.5, help="By which share chance changes that length.")
    ] = 0.0,
    top_db: Annotated[
        float | None,
        typer.Option(min=3, max=100, help="So far below the loudest is silence.", show_default="20"),
    ] = None,
    start: Annotated[float, typer.Option(min=0, help="Where the part to use begins, in seconds.")] = 0.0,
    seconds: Annotated[float, typer.Option(min=0, help="Length of the part to use; 0: all the rest.")] = 0.0,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """Upload a sound and cut it into grains."""
    from contrafact._styles import cut

    try:
        wanted = cut(
            top_db=top_db,
            segmentation=segmentation,
            grain_ms=grain_ms,
            jitter=jitter,
            start_seconds=start,
            seconds=seconds,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error

    async def work(client: Client) -> None:
        with reporting(json) as show:
            style = await added(client, sound, name, wanted, show)
        show_styles([style], json)

    run(address, work)


@app.command("list")
def list_(limit: options.Limit = 50, address: options.Address = None, json: options.Json = False) -> None:
    """List styles, newest first."""

    async def work(client: Client) -> None:
        show_styles(await first(client.styles(page_size=min(limit, 1000)), limit), json)

    run(address, work)


@app.command()
def grains(
    style: Which,
    limit: options.Limit = 50,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """List the grains of a style, in the order of its sound."""

    async def work(client: Client) -> None:
        named = await find_style(client, style)
        found = await first(client.grains(named, page_size=min(limit, 1000)), limit)
        if json:
            for grain in found:
                json_line(as_json(grain))
            return
        rows = [
            (
                f"{grain.start_seconds:.3f}",
                f"{1000 * grain.seconds:.0f} ms",
                f"{grain.pitch_hz:.1f} Hz" if grain.HasField("pitch_hz") else "-",
                f"{grain.peak:.3f}",
                f"{grain.brightness_hz:.0f} Hz",
            )
            for grain in found
        ]
        table(GRAINS, rows)

    run(address, work)


@app.command()
def preview(
    style: Which,
    output: options.Output = Path(),
    address: options.Address = None,
) -> None:
    """Download the preview of a style: its first grains."""

    async def work(client: Client) -> None:
        found = await find_style(client, style)
        await saved(client, found.name, output)

    run(address, work)


@app.command()
def delete(style: Which, address: options.Address = None) -> None:
    """Delete a style. Mixes that were made with it stay."""

    async def work(client: Client) -> None:
        await client.delete_style(await find_style(client, style))

    run(address, work)
