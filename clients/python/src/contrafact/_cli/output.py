"""What commands print: JSON lines for machines, aligned columns and plain sizes for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from google.protobuf.message import Message


def as_json(message: Message) -> dict[str, Any]:
    """Return a message in the protobuf JSON mapping, with the field names of the API."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True)


def json_line(value: dict[str, Any]) -> None:
    """Print one JSON object on a line of its own, at once."""
    import sys

    sys.stdout.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns; nothing is ever cut off, so that the output can be piped."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def size(number: int) -> str:
    """Return bytes for people, for example "3.4 MB"."""
    if number < 1000:
        return f"{number} B"
    value, units = number / 1000, ["kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.1f} {units[0]}"


def duration(seconds: float) -> str:
    """Return a time for people, for example "3:07" or "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def printable(text: str) -> str:
    """Return text without characters that could steer a terminal; names are what strangers chose."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)
