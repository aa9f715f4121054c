"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Address = Annotated[
    str | None,
    typer.Option(
        help="Server, HOST:PORT; https://HOST:PORT for TLS.",
        envvar="CONTRAFACT_ADDRESS",
        show_default="127.0.0.1:50051",
        metavar="HOST:PORT",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object a line, and nothing else, on standard output.")
]
Limit = Annotated[int, typer.Option(min=1, help="Show at most so many.")]
