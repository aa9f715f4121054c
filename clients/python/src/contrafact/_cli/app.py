"""The commands put together."""

from __future__ import annotations

from typing import Any

import typer

from contrafact._cli import (
    analyze,
    convert,
    cover,
    covers,
    jobs,
    mix,
    mixes,
    projects,
    scans,
    search,
    separate,
    stems,
    styles,
    tracks,
    voices,
)
from contrafact._cli.plugins import LazyGroup

HELP = """Take music apart, give it other voices and other sounds, find it by its sound.

The server is found at --address or $CONTRAFACT_ADDRESS, else 127.0.0.1:50051. A token is read from
$CONTRAFACT_TOKEN.

Exit codes: 0 done; 1 the job or the server failed; 2 wrong usage; 3 the server cannot be reached;
4 the server refused the input; 130 interrupted.
"""


def version() -> None:
    """Show the version of this client."""
    import contrafact

    typer.echo(f"contrafact {contrafact.__version__}")


def build() -> Any:
    """Return the whole command line as a callable command."""
    app = typer.Typer(cls=LazyGroup, help=HELP, no_args_is_help=True, add_completion=False)
    app.command("separate")(separate.separate)
    app.command("cover")(cover.cover)
    app.command("mix")(mix.mix)
    app.command("convert")(convert.convert)
    app.command("analyze")(analyze.analyze)
    app.command("scan")(scans.scan)
    app.command("search")(search.search)
    app.command("radio")(search.radio)
    app.add_typer(tracks.app, name="tracks")
    app.add_typer(jobs.app, name="jobs")
    app.add_typer(stems.app, name="stems")
    app.add_typer(voices.app, name="voices")
    app.add_typer(covers.app, name="covers")
    app.add_typer(styles.app, name="styles")
    app.add_typer(projects.app, name="projects")
    app.add_typer(mixes.app, name="mixes")
    app.add_typer(scans.app, name="scans")
    app.add_typer(search.app, name="playlists")
    app.command("version")(version)
    return typer.main.get_command(app)
