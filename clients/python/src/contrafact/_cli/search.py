"""``contrafact search``, ``radio`` and ``playlists``: tracks found by their sound."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contrafact._cli import options
from contrafact._cli.finding import first
from contrafact._cli.output import as_json, json_line, printable, table
from contrafact._cli.running import run
from contrafact._cli.sounds import show_hits

if TYPE_CHECKING:
    from contrafact._client import Client
    from contrafact._search import Bounds, Sounds
    from contrafact.v1.search_pb2 import Playlist

app = typer.Typer(help="Saved queries.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help='Playlist, "playlists/{id}".', show_default=False)]
HEADER = ("NAME", "LIMIT", "EXAMPLES", "CREATED", "DISPLAY NAME")

Examples = Annotated[
    list[str] | None,
    typer.Argument(
        help='"tracks/{id}", "tracks/{id}@30-45" (seconds of it), or a file; none: the newest tracks.',
        show_default=False,
    ),
]
Bpm = Annotated[str, typer.Option(help='Tempo, "120-128", "120-" or "-128".')]
AnyOctave = Annotated[bool, typer.Option("--any-octave", help="Half and double the tempo will do as well.")]
Key = Annotated[list[str] | None, typer.Option(help='Camelot code, "8A"; may be repeated.')]
Compatible = Annotated[bool, typer.Option("--compatible", help="Neighbours of the keys will do as well.")]
Lufs = Annotated[str, typer.Option(help='Loudness, "-14..-9".')]
Seconds = Annotated[str, typer.Option(help='Length, "60-300".')]
Tag = Annotated[list[str] | None, typer.Option(help="Tag it must have; may be repeated.")]
WithoutTag = Annotated[list[str] | None, typer.Option(help="Tag it may not have; may be repeated.")]


def bounds(text: str) -> Bounds:
    """Return least and greatest of "120-128", "-14..-9", "120-" or "..-9"; ValueError if it is none."""
    if not text:
        return None, None
    number = r"(-?\d+(?:\.\d+)?)?"
    found = re.fullmatch(rf"{number}\.\.{number}", text) or re.fullmatch(rf"(\d+(?:\.\d+)?)?-{number}", text)
    if found is None or not any(found.groups()):
        raise ValueError(f"{text!r} is not like 120-128, -14..-9, 120- or ..-9")
    low, high = (float(each) if each else None for each in found.groups())
    return low, high


def _filters(
    bpm: str,
    any_octave: bool,
    key: list[str] | None,
    compatible: bool,
    lufs: str,
    seconds: str,
    tag: list[str] | None,
    without_tag: list[str] | None,
) -> dict[str, Any]:
    return {
        "bpm": bounds(bpm),
        "any_octave": any_octave,
        "keys": [each.upper() for each in key or ()],
        "compatible_keys": compatible,
        "lufs": bounds(lufs),
        "seconds": bounds(seconds),
        "tags": tag or (),
        "without_tags": without_tag or (),
    }


async def _sounds(client: Client, examples: list[str] | None) -> list[Sounds]:
    """What the words for examples mean; files are sent."""
    from contrafact.v1.search_pb2 import TrackSegment

    found: list[Sounds] = []
    for each in examples or ():
        segment = re.fullmatch(r"(tracks/[^@]+)@(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", each)
        if segment:
            track, start, end = segment.groups()
            found.append(TrackSegment(track=track, start_seconds=float(start), end_seconds=float(end)))
        elif each.startswith("tracks/") and not Path(each).exists():
            found.append(each)
        else:
            found.append(await client.embed_clip(each))
    return found


def search(
    examples: Examples = None,
    bpm: Bpm = "",
    any_octave: AnyOctave = False,
    key: Key = None,
    compatible: Compatible = False,
    lufs: Lufs = "",
    seconds: Seconds = "",
    tag: Tag = None,
    without_tag: WithoutTag = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Show at most so many.")] = 20,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """Find tracks that sound like others, or by tempo, key, loudness, length and tags."""

    async def work(client: Client) -> None:
        filters = _filters(bpm, any_octave, key, compatible, lufs, seconds, tag, without_tag)
        hits = await client.search(*await _sounds(client, examples), limit=limit, **filters)
        show_hits(hits, json)

    run(address, work)


def radio(
    examples: Examples = None,
    diversity: Annotated[
        float, typer.Option(min=0, max=1, help="0: alike; 1: as different as can be.")
    ] = 0.3,
    seed: Annotated[int, typer.Option(min=0, help="The same one gives the same radio.")] = 0,
    bpm: Bpm = "",
    any_octave: AnyOctave = False,
    key: Key = None,
    compatible: Compatible = False,
    lufs: Lufs = "",
    seconds: Seconds = "",
    tag: Tag = None,
    without_tag: WithoutTag = None,
    limit: Annotated[int, typer.Option(min=1, help="Stop after so many.")] = 20,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """Play on from tracks: a list without end, none twice until all were played."""

    async def work(client: Client) -> None:
        filters = _filters(bpm, any_octave, key, compatible, lufs, seconds, tag, without_tag)
        sounds = await _sounds(client, examples)
        hits = await first(client.radio(*sounds, diversity=diversity, seed=seed, **filters), limit)
        show_hits(hits, json)

    run(address, work)


def _show(playlists: list[Playlist], json: bool) -> None:
    def row(playlist: Playlist) -> tuple[str, ...]:
        return (
            playlist.name,
            str(playlist.limit),
            str(len(playlist.query.examples)),
            playlist.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M"),
            printable(playlist.display_name),
        )

    if json:
        for each in playlists:
            json_line(as_json(each))
    else:
        table(HEADER, [row(each) for each in playlists])


@app.command("list")
def list_(limit: options.Limit = 50, address: options.Address = None, json: options.Json = False) -> None:
    """List playlists, newest first."""

    async def work(client: Client) -> None:
        found = await first(client.playlists(page_size=min(limit, 1000)), limit)
        _show(found, json)

    run(address, work)


@app.command()
def create(
    display_name: Annotated[str, typer.Argument(help="What to call it.", show_default=False)],
    examples: Examples = None,
    bpm: Bpm = "",
    any_octave: AnyOctave = False,
    key: Key = None,
    compatible: Compatible = False,
    lufs: Lufs = "",
    seconds: Seconds = "",
    tag: Tag = None,
    without_tag: WithoutTag = None,
    ordered: Annotated[bool, typer.Option("--ordered", help="By tempo and key, as a DJ would.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Most tracks in it.")] = 100,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """Save a search as a playlist, which is made anew whenever it is asked for."""

    async def work(client: Client) -> None:
        filters = _filters(bpm, any_octave, key, compatible, lufs, seconds, tag, without_tag)
        sounds = await _sounds(client, examples)
        made = await client.create_playlist(display_name, *sounds, limit=limit, ordered=ordered, **filters)
        if json:
            json_line(as_json(made))
        else:
            typer.echo(made.name)

    run(address, work)


@app.command()
def show(name: Name, address: options.Address = None, json: options.Json = False) -> None:
    """List the tracks that are in a playlist now."""

    async def work(client: Client) -> None:
        show_hits(await client.playlist_tracks(name), json)

    run(address, work)


@app.command()
def delete(name: Name, address: options.Address = None) -> None:
    """Delete a playlist; its tracks stay."""

    async def work(client: Client) -> None:
        await client.delete_playlist(name)

    run(address, work)
