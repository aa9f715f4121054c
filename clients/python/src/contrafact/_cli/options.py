"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FORMATS = ("flac", "wav", "mp3", "opus")
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
Voice = Annotated[
    str, typer.Option(help='The voice: "voices/{id}", its name, or part of its name.', show_default=False)
]
Key = Annotated[
    str | None,
    typer.Option(help="Semitones up or down; a cover may also have auto.", show_default="as it is sung"),
]
IndexRate = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="How much of the voice's retrieval index is used.", show_default="0.75"),
]
Protect = Annotated[
    float | None,
    typer.Option(min=0, max=0.5, help="How much of it unvoiced sounds get.", show_default="0.33"),
]
RmsMix = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Loudness contour: 0 the singer's, 1 the voice's.", show_default="0.25"),
]
PitchMethod = Annotated[
    str, typer.Option(help="rmvpe, swift-f0 or pyin.", show_default="the best the server has")
]
Speaker = Annotated[int, typer.Option(min=0, help="Which of the voice's speakers.")]
Limit = Annotated[int, typer.Option(min=1, help="Show at most so many.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="File, or a folder that exists.")]


def format_of(output: str | None, wanted: str | None) -> str:
    """Return the format that is wanted, else that of the output's name, else "flac"."""
    suffix = Path(output or "").suffix[1:].lower()
    return wanted or (suffix if suffix in FORMATS else "flac")
