"""``contrafact analyze``: what a song sounds like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from contrafact._cli import options
from contrafact._cli.output import as_json, json_line
from contrafact._cli.running import run

if TYPE_CHECKING:
    from contrafact._client import Client


def analyze(
    song: Annotated[str, typer.Argument(help='The recording, or "tracks/{id}".', show_default=False)],
    full: Annotated[
        bool, typer.Option("--full", help="With all onsets, beats and the pitch contour; for --json.")
    ] = False,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """Tell tempo, key, loudness and more of a song, as each becomes known.

    Ctrl-C does not stop the server, which keeps what it finds.
    """

    async def work(client: Client) -> None:
        from contrafact._cli.sounds import lines, uploaded

        track = await uploaded(client, song, json)
        told: set[str] = set()
        async for response in client.watch_analysis(track, full=full):
            if json:
                json_line({"event": "analysis", **as_json(response)})
                continue
            for name, text in lines(response.analysis.features):
                if name not in told:
                    told.add(name)
                    typer.echo(f"{name:<10} {text}")

    run(address, work)
