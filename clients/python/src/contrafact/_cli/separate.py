"""``contrafact separate``: a song in, its stems out, while they are being made."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contrafact._cli import options
from contrafact._cli.progress import Reporter, reporter
from contrafact._cli.running import describe, exit_code, run

if TYPE_CHECKING:
    from contrafact._client import Client
    from contrafact._job import JobHandle
    from contrafact._stems import StemProgress
    from contrafact.v1.job_pb2 import Job


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
        show = reporter(json)
        try:
            await carry_out(client, order, show)
        except asyncio.CancelledError:
            show.note("interrupted", interrupted=True)
            raise
        except Exception as error:
            if json:
                reason, message = describe(error)
                show.note(message, failed=True, reason=reason, exit_code=exit_code(error))
            raise
        finally:
            show.close()

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
    began = time.monotonic()
    track = await client.upload(
        order.song, progress=lambda done, total: show.bytes_done("upload", done, total)
    )
    uploaded = time.monotonic()
    show.about("track", track)
    job = await client.separate(
        track, stems=order.stems, format=order.format, priority=order.priority, model=order.model
    )
    show.about("job", job.job)
    first_audio: list[float] = []

    def stem(progress: StemProgress) -> None:
        if progress.frames_ready and not first_audio:
            first_audio.append(time.monotonic() - began)
        show.stem(progress)

    try:
        if order.live:
            ended, paths = await _both(job, order, show, stem)
        else:
            ended = await job.wait(show.job_event)
            paths = {}
            for artifact in ended.artifacts:
                path = order.folder / _file_name(artifact.stem, order.format)
                paths[path.stem] = await client.download(artifact, path)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(10.0):
                await job.cancel()
                show.note(f"cancelled {job.name}")
        raise
    for warning in ended.warnings:
        show.note(f"warning: {warning}")
    took = time.monotonic() - began
    heard = f", first audio after {first_audio[0]:.1f} s" if first_audio else ""
    show.saved(
        paths,
        f"{len(paths)} stems of {track.audio.seconds:.1f} s in {order.folder}, made in {took:.1f} s{heard}",
        folder=str(order.folder),
        seconds=round(took, 3),
        upload_seconds=round(uploaded - began, 3),
        first_audio_seconds=round(first_audio[0], 3) if first_audio else None,
        track=track.name,
        job=job.name,
    )


def _file_name(stem: int, format: str) -> str:
    from contrafact import _words

    return f"{_words.stem_word(stem)}.{format.strip().lower()}"


async def _both(
    job: JobHandle, order: Order, show: Reporter, stem: Callable[[StemProgress], None]
) -> tuple[Job, dict[str, Path]]:
    """Follow the job and save its stems at once; the first failure of either ends both."""
    waiting = asyncio.ensure_future(job.wait(show.job_event))
    saving = asyncio.ensure_future(job.save_live(order.folder, stem))
    try:
        await asyncio.gather(waiting, saving)
    finally:
        waiting.cancel()
        saving.cancel()
        await asyncio.gather(waiting, saving, return_exceptions=True)
    return waiting.result(), saving.result()
