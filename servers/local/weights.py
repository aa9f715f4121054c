"""``contrafact weights``: the models' weights on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from model_repository.weights.__main__ import main

app = typer.Typer(help="Fetch, verify and list the weights of models.")


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="For example htdemucs.", show_default=False)],
    force: Annotated[bool, typer.Option(help="Fetch although the cache has it.")] = False,
) -> None:
    """Bring weights into the cache, verified, and print where they are."""
    raise typer.Exit(main(["fetch", *names, *(["--force"] if force else [])]))


@app.command("list")
def list_() -> None:
    """List what there is, under which licence, and whether it is in the cache."""
    raise typer.Exit(main(["list"]))
