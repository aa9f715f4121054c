"""``contrafact voices``: singers that others can be converted to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contrafact._cli import options, pool
from contrafact._cli.finding import find_voice, first
from contrafact._cli.following import reporting
from contrafact._cli.output import as_json, json_line, printable, table
from contrafact._cli.running import run

if TYPE_CHECKING:
    from contrafact._client import Client
    from contrafact.v1.voice_pb2 import Voice

app = typer.Typer(help="Singers that others can be converted to.", no_args_is_help=True)
app.command("pool")(pool.pool)

Which = Annotated[
    str, typer.Argument(help='Voice: "voices/{id}", its name, or part of it.', show_default=False)
]
Language = Annotated[str | None, typer.Option(help='BCP 47 tag of the language it sings, as "en".')]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="A word to find it by; may be repeated.")]
Licence = Annotated[str | None, typer.Option(help="Under which terms it may be used.")]
HEADER = ("NAME", "RATE", "VERSION", "PITCH", "VECTORS", "WARMTH", "LANGUAGE", "TAGS", "DISPLAY NAME")


def _row(voice: Voice) -> tuple[str, ...]:
    from contrafact import _words

    pitch = voice.pitch_range
    return (
        voice.name,
        f"{voice.sample_rate} Hz",
        voice.rvc_version,
        f"{pitch.low_hz:.0f}-{pitch.high_hz:.0f} Hz" if voice.HasField("pitch_range") else "-",
        str(voice.index_vectors),
        _words.warmth_word(voice.warmth) or "-",
        printable(voice.language) or "-",
        printable(",".join(voice.tags)) or "-",
        printable(voice.display_name),
    )


def _show(voices: list[Voice], json: bool) -> None:
    if json:
        for voice in voices:
            json_line(as_json(voice))
    else:
        table(HEADER, [_row(voice) for voice in voices])


@app.command("import")
def import_(
    weights: Annotated[
        Path,
        typer.Argument(
            help="The model, .pth.", exists=True, dir_okay=False, readable=True, show_default=False
        ),
    ],
    index: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, readable=True, help="Its retrieval index, .index."),
    ] = None,
    sample: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, readable=True, help="A recording of the voice."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What to call it.", show_default="the model's name")
    ] = None,
    language: Language = None,
    tag: Tags = None,
    licence: Licence = None,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """Import an RVC voice."""

    async def work(client: Client) -> None:
        with reporting(json) as show:
            voice = await client.import_voice(
                weights,
                index,
                sample,
                display_name=name or weights.stem,
                language=language or "",
                tags=tag or (),
                licence=licence or "",
                progress=lambda done, total: show.bytes_done("upload", done, total),
            )
            if json:
                show.about("voice", voice)
        if not json:
            typer.echo(voice.name)

    run(address, work)


@app.command("list")
def list_(
    contains: Annotated[str, typer.Option(help="Only voices whose display name contains this.")] = "",
    language: Annotated[str, typer.Option(help="Only voices of this language.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="Only voices with this tag; may be repeated.")] = None,
    limit: options.Limit = 50,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """List voices, newest first."""

    async def work(client: Client) -> None:
        found = await first(
            client.voices(
                display_name_contains=contains, language=language, tags=tag or (), page_size=min(limit, 1000)
            ),
            limit,
        )
        _show(found, json)

    run(address, work)


@app.command()
def show(voice: Which, address: options.Address = None, json: options.Json = False) -> None:
    """Show one voice."""

    async def work(client: Client) -> None:
        _show([await find_voice(client, voice)], json)

    run(address, work)


@app.command()
def update(
    voice: Which,
    name: Annotated[str | None, typer.Option(help="What to call it.")] = None,
    language: Language = None,
    tag: Tags = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="Remove its tags.")] = False,
    licence: Licence = None,
    pitch_range: Annotated[
        tuple[float, float, float] | None,
        typer.Option(help="Its register: low, median and high pitch in Hz.", metavar="LOW MEDIAN HIGH"),
    ] = None,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """Change what is said about a voice; what is not given stays as it is."""
    tags = [] if no_tags else tag or None
    if all(each is None for each in (name, language, tags, licence, pitch_range)):
        raise typer.BadParameter("nothing to change")

    async def work(client: Client) -> None:
        found = await find_voice(client, voice)
        changed = await client.update_voice(
            found, display_name=name, language=language, tags=tags, licence=licence, pitch_range=pitch_range
        )
        _show([changed], json)

    run(address, work)


@app.command()
def delete(
    voice: Which,
    cancel_jobs: Annotated[
        bool,
        typer.Option("--cancel-jobs", help="Cancel the unfinished jobs that use it instead of refusing."),
    ] = False,
    address: options.Address = None,
) -> None:
    """Delete a voice and its files. Covers that were made with it stay."""

    async def work(client: Client) -> None:
        await client.delete_voice(await find_voice(client, voice), cancel_jobs=cancel_jobs)

    run(address, work)


@app.command()
def warm(voice: Which, address: options.Address = None, json: options.Json = False) -> None:
    """Begin to load a voice, so that the next use of it need not wait."""

    async def work(client: Client) -> None:
        _show([await client.warm_voice(await find_voice(client, voice))], json)

    run(address, work)


@app.command()
def sample(
    voice: Which,
    output: options.Output = Path(),
    address: options.Address = None,
) -> None:
    """Download the sample of a voice."""

    async def work(client: Client) -> None:
        typer.echo(str(await client.download_voice_sample(await find_voice(client, voice), output)))

    run(address, work)
