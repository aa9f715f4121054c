"""``contrafact cover``: a song in, the same song sung by another voice out, while it is being made."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contrafact._cli import options
from contrafact._cli.finding import find_voice
from contrafact._cli.following import Clock, cancelling, follow, reporting, warn
from contrafact._cli.output import printable
from contrafact._cli.pipes import write_out
from contrafact._cli.progress import Reporter
from contrafact._cli.running import run

if TYPE_CHECKING:
    from contrafact._client import Client
    from contrafact._job import JobHandle
    from contrafact._result_stream import ResultProgress
    from contrafact.v1.track_pb2 import Track


@dataclass(frozen=True)
class Order:
    """What the user wants. The song is a file or a track; no path: standard output."""

    song: Path | str
    voice: str
    path: Path | None
    live: bool
    settings: dict[str, Any]


def cover(
    song: Annotated[
        str, typer.Argument(help='The recording: a file, or a track, "tracks/{id}".', show_default=False)
    ],
    voice: options.Voice,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="The cover, or - for standard output, for a player.",
            show_default="SONG-cover.FORMAT",
        ),
    ] = None,
    key: options.Key = None,
    index_rate: options.IndexRate = None,
    protect: options.Protect = None,
    rms_mix: options.RmsMix = None,
    pitch_method: options.PitchMethod = "",
    speaker: options.Speaker = 0,
    vocals_gain: Annotated[float, typer.Option(min=-60, max=24, help="Gain of the vocals in dB.")] = 0.0,
    instrumental_gain: Annotated[float, typer.Option(min=-60, max=24, help="Gain of the rest in dB.")] = 0.0,
    match_loudness: Annotated[
        bool, typer.Option(help="Make the vocals as loud as the singer was, or leave them as they are.")
    ] = True,
    format: Annotated[
        str | None,
        typer.Option(help="flac, wav, mp3 or opus.", show_default="by the output's name, else flac"),
    ] = None,
    priority: Annotated[
        str, typer.Option(help="interactive, or background when nobody waits for it.")
    ] = "interactive",
    model: Annotated[str, typer.Option(help="Model; the server's default if not given.")] = "",
    live: Annotated[
        bool,
        typer.Option("--live/--no-live", help="Write the cover while it is being made, or when it is done."),
    ] = True,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """Give a song another voice.

    Ctrl-C cancels the job on the server; a second Ctrl-C exits at once.
    """
    chosen = options.format_of(output, format)
    source = song if song.startswith("tracks/") and not Path(song).exists() else Path(song)
    place = Path(output or f"{Path(song).stem}-cover.{chosen.strip().lower()}")
    settings = {
        "semitones": key,
        "index_rate": index_rate,
        "protect": protect,
        "rms_mix": rms_mix,
        "pitch_method": pitch_method,
        "speaker": speaker,
        "vocals_gain_db": vocals_gain,
        "instrumental_gain_db": instrumental_gain,
        "match_loudness": match_loudness,
        "format": chosen,
        "priority": priority,
        "model": model,
    }
    order = Order(source, voice, None if output == "-" else place, live, settings)

    async def work(client: Client) -> None:
        with reporting(json) as show:
            await carry_out(client, order, show)

    _check(order, json)
    run(address, work)


def _check(order: Order, json: bool) -> None:
    """Refuse what means nothing, before anything is sent."""
    from contrafact import _words

    try:
        if order.path is None and (json or not order.live):
            raise ValueError("-o - writes the cover live to standard output; leave out --json and --no-live")
        if order.path is not None and order.path.is_dir():
            raise ValueError(f"{order.path} is a folder")
        if isinstance(order.song, Path) and not order.song.is_file():
            raise ValueError(f"{order.song} is neither a file nor a track")
        _words.semitones(order.settings["semitones"])
        _words.pitch_method(order.settings["pitch_method"])
        _words.audio_format(order.settings["format"])
        _words.priority(order.settings["priority"])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


async def carry_out(client: Client, order: Order, show: Reporter) -> None:
    """Find the voice, upload, create the job, follow it, and save the cover."""
    voice = await find_voice(client, order.voice)
    clock = Clock()
    track = await _track(client, order.song, show)
    uploaded = clock.seconds
    show.about("track", track)
    job = await client.cover(track, voice, **order.settings)
    show.about("job", job.job)

    def saved(progress: ResultProgress) -> None:
        clock.heard(progress.frames_ready)
        show.result("cover", progress)

    async with cancelling(job, show):
        if order.path is None:
            ended, _ = await follow(job, show, _write_out(job, clock))
        elif order.live:
            ended, _ = await follow(job, show, job.save_cover(order.path, saved))
        else:
            ended = await job.wait(show.job_event)
            await client.download(ended.artifacts[-1], order.path)
    warn(ended, show)
    made = ended.artifacts[-1]
    show.saved(
        {} if order.path is None else {"cover": order.path},
        f"{track.audio.seconds:.1f} s sung by {printable(voice.display_name)}, {clock.summary()}",
        upload_seconds=round(uploaded, 3),
        track=track.name,
        voice=voice.name,
        job=job.name,
        cover=made.name,
        **clock.facts(),
    )


async def _track(client: Client, song: Path | str, show: Reporter) -> Track:
    if isinstance(song, str):
        return await client.track(song)
    return await client.upload(song, progress=lambda done, total: show.bytes_done("upload", done, total))


async def _write_out(job: JobHandle, clock: Clock) -> None:
    """Write the cover to standard output while it is being made, as fast as it is read there."""
    from contrafact._errors import DataLoss

    written = 0
    async with contextlib.aclosing(job.stream_cover()) as responses:
        async for response in responses:
            if response.HasField("end"):
                return
            if response.chunk.offset < written:
                raise DataLoss("another attempt made other bytes than those that are written already")
            await write_out(response.chunk.data)
            written += len(response.chunk.data)
            clock.heard(response.frames_ready)
