"""Commands of other distributions, from the entry points in the group ``contrafact.commands``.

An entry point is a Typer app or a plain function; it becomes the command of its name. It is imported only
when that command is given: listing the commands shows its name and where it comes from.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup

GROUP = "contrafact.commands"


def found() -> dict[str, EntryPoint]:
    """Return the entry points by name."""
    return {each.name: each for each in sorted(entry_points(group=GROUP))}


def load(point: EntryPoint) -> Any:
    """Import an entry point and return its command."""
    try:
        loaded = point.load()
    except ImportError as error:
        raise typer.BadParameter(f"the command {point.name!r} is not usable: {error}") from error
    if isinstance(loaded, typer.Typer):
        return typer.main.get_command(loaded)
    app = typer.Typer(add_completion=False)
    app.command(point.name)(loaded)
    return typer.main.get_command(app)


def placeholder(point: EntryPoint) -> Any:
    """Return a command that stands for an entry point in lists of commands."""
    app = typer.Typer(add_completion=False)
    origin = point.dist.name if point.dist is not None else point.module
    app.command(point.name, help=f"Provided by {origin}.")(lambda: None)
    return typer.main.get_command(app)


class LazyGroup(TyperGroup):
    """A group that also has the commands of the entry points."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Name own commands first, then those of entry points."""
        own = super().list_commands(ctx)
        return own + [name for name in found() if name not in own]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; of an entry point only its placeholder."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        point = found().get(cmd_name)
        return None if point is None else placeholder(point)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that is about to run, importing it now."""
        if args and super().get_command(ctx, args[0]) is None:
            point = found().get(args[0])
            if point is not None:
                return point.name, load(point), args[1:]
        return super().resolve_command(ctx, args)
