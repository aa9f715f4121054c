"""``contrafact separate``: a song in, its stems out, while they are being made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contrafact._cli import options
from contrafact._cli.following import Clock, cancelling, follow, reporting, warn
from contrafact._cli.progress import Reporter
from contrafact._cli.running import run

if TYPE_CHECKING:
    from contrafact._client import Client
    from contrafact._stems import StemProgress


@dataclass(frozen=True)
class Order:
    """What the user wants."""

    song: Path
    folder: Path
    stems: str
    format: str
    priority: str
    model: str
    live: bool


def separate(
    song: Annotated[
        Path,
        typer.Argument(help="The recording.", exists=True, dir_okay=False, readable=True, show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder for the stems.", file_okay=False, show_default="SONG-stems"
        ),
    ] = None,
    stems: Annotated[
        str,
        typer.Option(
            help='Stems with commas between them, or "all": vocals, drums, bass, other, instrumental.'
        ),
    ] = "vocals,drums,bass,other",
    format: Annotated[str, typer.Option(help="flac, wav, mp3 or opus.")] = "flac",
    priority: Annotated[
        str, typer.Option(help="interactive, or background when nobody waits for it.")
    ] = "interactive",
    model: Annotated[str, typer.Option(help="Model; the server's default if not given.")] = "",
    live: Annotated[
        bool,
        typer.Option("--live/--no-live", help="Write stems while they are being made, or when all are done."),
    ] = True,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """Separate a song into stems.

    Ctrl-C cancels the job on the server; a second Ctrl-C exits at once.
    """
    order = Order(song, output or Path(f"{song.stem}-stems"), stems, format, priority, model, live)

    async def work(client: Client) -> None:
        with reporting(json) as show:
            await carry_out(client, order, show)

    _check(order)
    run(address, work)


def _check(order: Order) -> None:
    """Refuse words that mean nothing, before anything is sent."""
    from contrafact import _words

    try:
        if not _words.stem_kinds(order.stems):
            raise ValueError("name at least one stem")
        _words.audio_format(order.format)
        _words.priority(order.priority)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


async def carry_out(client: Client, order: Order, show: Reporter) -> None:
    """Upload, create the job, follow it, and save its stems."""
    clock = Clock()
    track = await client.upload(
        order.song, progress=lambda done, total: show.bytes_done("upload", done, total)
    )
    uploaded = clock.seconds
    show.about("track", track)
    job = await client.separate(
        track, stems=order.stems, format=order.format, priority=order.priority, model=order.model
    )
    show.about("job", job.job)

    def stem(progress: StemProgress) -> None:
        clock.heard(progress.frames_ready)
        show.stem(progress)

    async with cancelling(job, show):
        if order.live:
            ended, paths = await follow(job, show, job.save_live(order.folder, stem))
        else:
            ended = await job.wait(show.job_event)
            paths = {}
            for artifact in ended.artifacts:
                path = order.folder / _file_name(artifact.stem, order.format)
                paths[path.stem] = await client.download(artifact, path)
    warn(ended, show)
    show.saved(
        paths,
        f"{len(paths)} stems of {track.audio.seconds:.1f} s in {order.folder}, {clock.summary()}",
        folder=str(order.folder),
        upload_seconds=round(uploaded, 3),
        track=track.name,
        job=job.name,
        **clock.facts(),
    )


def _file_name(stem: int, format: str) -> str:
    from contrafact import _words

    return f"{_words.stem_word(stem)}.{format.strip().lower()}"
