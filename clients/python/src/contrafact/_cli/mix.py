"""``contrafact mix``: a song in, the same song with its stems played by other sounds out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contrafact._cli import options
from contrafact._cli.finding import find_style
from contrafact._cli.following import Clock, cancelling, follow, reporting, warn
from contrafact._cli.progress import Reporter
from contrafact._cli.running import run

if TYPE_CHECKING:
    from contrafact._client import Client
    from contrafact._result_stream import ResultProgress
    from contrafact.v1.project_pb2 import Project

Style = typer.Option(
    help='A style, "styles/{id}" or its name, or a file to make one of.', show_default="as they are"
)
Volume = typer.Option(min=0, max=4, help="What its samples are multiplied by; 0: it is not heard.")


@dataclass(frozen=True)
class Order:
    """What the user wants. The song is a file, a track or a project; styles are by stem."""

    song: str
    path: Path
    styles: dict[str, str]
    volumes: dict[str, float]
    settings: dict[str, Any]
    options: dict[str, Any]


def mix(
    song: Annotated[
        str,
        typer.Argument(help='The recording: a file, "tracks/{id}", or "projects/{id}".', show_default=False),
    ],
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="The mix.", show_default="SONG-mix.FORMAT")
    ] = None,
    drums: Annotated[str | None, Style] = None,
    bass: Annotated[str | None, Style] = None,
    other: Annotated[str | None, Style] = None,
    drums_volume: Annotated[float, Volume] = 1.0,
    bass_volume: Annotated[float, Volume] = 1.0,
    other_volume: Annotated[float, Volume] = 1.0,
    vocals_volume: Annotated[float, Volume] = 1.0,
    grain_ms: Annotated[
        float | None,
        typer.Option(min=5, max=10_000, help="How long a grain is played, in ms.", show_default="120"),
    ] = None,
    envelope: Annotated[
        str, typer.Option(help="exponential, linear, hann or adsr.", show_default="exponential")
    ] = "",
    density: Annotated[
        float | None, typer.Option(min=0.05, max=16, help="Grains for each note.", show_default="1")
    ] = None,
    shift_pitch: Annotated[
        bool, typer.Option("--shift-pitch", help="Shift grains to the pitch of what they replace.")
    ] = False,
    spread: Annotated[float, typer.Option(min=0, max=1, help="How far in stereo grains are put.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="What chance begins with.")] = 0,
    normalization: Annotated[str, typer.Option(help="limit, none, peak or lufs.")] = "limit",
    format: Annotated[
        str | None,
        typer.Option(help="flac, wav, mp3 or opus.", show_default="by the output's name, else flac"),
    ] = None,
    priority: Annotated[
        str, typer.Option(help="interactive, or background when nobody waits for it.")
    ] = "interactive",
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """Play the stems of a song with the grains of other sounds.

    Ctrl-C cancels the job on the server; a second Ctrl-C exits at once.
    """
    chosen = options.format_of(output, format)
    styles = {stem: style for stem, style in (("drums", drums), ("bass", bass), ("other", other)) if style}
    volumes = {"drums": drums_volume, "bass": bass_volume, "other": other_volume, "vocals": vocals_volume}
    settings = {
        "grain_duration_ms": grain_ms,
        "envelope": envelope,
        "density": density,
        "shift_pitch": shift_pitch,
        "spread": spread,
        "seed": seed,
    }
    place = Path(output or f"{Path(song).stem}-mix.{chosen.strip().lower()}")
    others = {"normalization": normalization, "format": chosen, "priority": priority}
    order = Order(song, place, styles, volumes, settings, others)

    async def work(client: Client) -> None:
        with reporting(json) as show:
            await carry_out(client, order, show)

    _check(order)
    run(address, work)


def _check(order: Order) -> None:
    """Refuse what means nothing, before anything is sent."""
    from contrafact import _words

    try:
        if order.path.is_dir():
            raise ValueError(f"{order.path} is a folder")
        if not order.song.startswith(("tracks/", "projects/")) and not Path(order.song).is_file():
            raise ValueError(f"{order.song} is neither a file nor a track nor a project")
        _words.envelope(order.settings["envelope"])
        _words.normalization(order.options["normalization"])
        _words.audio_format(order.options["format"])
        _words.priority(order.options["priority"])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


async def carry_out(client: Client, order: Order, show: Reporter) -> None:
    """Find or make the styles, prepare the project, create the mix, follow it, and save it."""
    from contrafact._mixes import grain_settings, mix_config

    clock = Clock()
    styles = {stem: await _style(client, wanted, show) for stem, wanted in order.styles.items()}
    project = await _project(client, order.song, order.options["priority"], show)
    prepared = clock.seconds
    parts: dict[str, Any] = {
        stem: {"volume": volume, **({"style": styles[stem]} if stem in styles else {})}
        for stem, volume in order.volumes.items()
    }
    config = mix_config(
        **parts,
        grains=grain_settings(**order.settings),
        normalization=order.options["normalization"],
        format=order.options["format"],
    )
    mix, job = await client.create_mix(project, config, priority=order.options["priority"])
    show.about("job", job.job)
    mixing = Clock()

    def saved(progress: ResultProgress) -> None:
        mixing.heard(progress.frames_ready)
        show.result("mix", progress)

    async with cancelling(job, show):
        ended, _ = await follow(job, show, job.save_mix(order.path, saved))
    warn(ended, show)
    report = (await client.mix(mix.name)).report
    show.saved(
        {"mix": order.path},
        f"{report.grains} grains played in {report.layers_made} stems ({report.layers_reused} more were "
        f"there already), {mixing.summary()}",
        prepared_seconds=round(prepared, 3),
        project=project.name,
        mix=mix.name,
        job=job.name,
        **mixing.facts(),
    )


async def _style(client: Client, wanted: str, show: Reporter) -> str:
    """Return the name of the style that is meant, which is made if it is a file."""
    from contrafact._cli.styles import added

    if Path(wanted).is_file():
        return (await added(client, Path(wanted), None, None, show)).name
    return (await find_style(client, wanted)).name


async def _project(client: Client, song: str, priority: str, show: Reporter) -> Project:
    """Return the project that is meant or made of a song, once it is ready."""
    if song.startswith("projects/"):
        return await client.prepared(song, show.job_event)
    track = song
    if not song.startswith("tracks/"):
        track = (
            await client.upload(song, progress=lambda done, total: show.bytes_done("upload", done, total))
        ).name
    project = await client.create_project(track, priority=priority)
    return await client.prepared(project, show.job_event)
