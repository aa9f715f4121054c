"""Finding what people name in their own words."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from contrafact._client import Client
    from contrafact.v1.style_pb2 import Style
    from contrafact.v1.voice_pb2 import Voice

SHOWN = 10

T = TypeVar("T")
Named = TypeVar("Named", "Voice", "Style")


async def first(items: AsyncGenerator[T, None], limit: int) -> list[T]:
    """Return the first ``limit`` items; no more are asked for."""
    found: list[T] = []
    async with aclosing(items):
        async for each in items:
            found.append(each)
            if len(found) == limit:
                break
    return found


async def find_voice(client: Client, wanted: str) -> Voice:
    """Return the one voice that is meant; see :func:`_find`."""
    if wanted.startswith("voices/"):
        return await client.voice(wanted)
    return await _find("voice", client.voices(display_name_contains=wanted), client.voices(), wanted)


async def find_style(client: Client, wanted: str) -> Style:
    """Return the one style that is meant; see :func:`_find`."""
    if wanted.startswith("styles/"):
        return await client.style(wanted)
    return await _find("style", client.styles(page_size=1000), client.styles(), wanted)


async def _find(
    what: str, close: AsyncGenerator[Named, None], every: AsyncGenerator[Named, None], wanted: str
) -> Named:
    """Return the one that is meant by a display name or, ignoring case, by a display name or part of one.

    Args:
        what: what they are called.
        close: those whose name may contain what is wanted.
        every: all of them.
        wanted: what the user wrote.

    Raises:
        ValueError: it is none, or several; the message lists them.
    """
    text = wanted.casefold()
    found = [each async for each in close if text in each.display_name.casefold()] if wanted else []
    exact = [each for each in found if each.display_name == wanted]
    same = [each for each in found if each.display_name.casefold() == text]
    candidates = exact or same or found
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise ValueError(f"{wanted!r} may be any of these {what}s: {_listed(candidates)}")
    listed = _listed(await first(every, SHOWN + 1)) or "none"
    raise ValueError(f"no {what} is called {wanted!r}; there are {listed}")


def _listed(found: Sequence[Voice | Style]) -> str:
    shown = ", ".join(f"{each.display_name} ({each.name})" for each in found[:SHOWN])
    return f"{shown} and more" if len(found) > SHOWN else shown
