"""``contrafact stems``: what tracks were separated into."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contrafact._cli import options
from contrafact._cli.output import as_json, json_line, size, table
from contrafact._cli.progress import reporter
from contrafact._cli.running import run

if TYPE_CHECKING:
    from contrafact._client import Client

app = typer.Typer(help="What tracks were separated into.", no_args_is_help=True)


@app.command("list")
def list_(
    track: Annotated[str, typer.Argument(help='Track, "tracks/{id}".', show_default=False)],
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """List the stored stems of a track."""

    async def work(client: Client) -> None:
        from contrafact import _words

        rows = []
        async for stem in client.stems(track):
            if json:
                json_line(as_json(stem))
            rows.append((_words.stem_word(stem.stem), size(stem.size_bytes), f"{stem.peak:.3f}", stem.name))
        if not json:
            table(("STEM", "SIZE", "PEAK", "NAME"), rows)

    run(address, work)


@app.command()
def download(
    name: Annotated[
        str,
        typer.Argument(
            help='Stem, "tracks/{id}/stems/{stem}", or a track for all its stems.', show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="File, or a folder that exists.")] = Path(
        "."
    ),
    address: options.Address = None,
) -> None:
    """Download one stem, or all stems of a track into a folder."""

    async def work(client: Client) -> None:
        show = reporter(json=False)
        paths = []
        try:
            names = [name] if "/stems/" in name else [stem.name async for stem in client.stems(name)]
            if len(names) != 1:
                output.mkdir(parents=True, exist_ok=True)
            for each in names:
                what = each.rpartition("/")[2]
                paths.append(
                    await client.download(
                        each,
                        output,
                        progress=lambda done, total, what=what: show.bytes_done(what, done, total),  # type: ignore[misc]
                    )
                )
        finally:
            show.close()
        for path in paths:
            typer.echo(str(path))

    run(address, work)
