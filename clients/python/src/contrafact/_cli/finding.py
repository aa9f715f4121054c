"""Finding what people name in their own words."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from contrafact._client import Client
    from contrafact.v1.voice_pb2 import Voice

SHOWN = 10

T = TypeVar("T")


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
    """Return the one voice that is meant.

    Args:
        client: whose voices.
        wanted: a resource name; a display name; or, ignoring case, a display name or part of one.

    Raises:
        ValueError: it is none, or several; the message lists them.
        NotFound: there is no voice of that resource name.
    """
    if wanted.startswith("voices/"):
        return await client.voice(wanted)
    found = [each async for each in client.voices(display_name_contains=wanted)] if wanted else []
    exact = [each for each in found if each.display_name == wanted]
    close = [each for each in found if each.display_name.casefold() == wanted.casefold()]
    candidates = exact or close or found
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise ValueError(f"{wanted!r} may be any of these voices: {_listed(candidates)}")
    every = await first(client.voices(page_size=SHOWN + 1), SHOWN + 1)
    raise ValueError(f"no voice is called {wanted!r}; there are {_listed(every) or 'none'}")


def _listed(voices: list[Voice]) -> str:
    shown = ", ".join(f"{each.display_name} ({each.name})" for each in voices[:SHOWN])
    return f"{shown} and more" if len(voices) > SHOWN else shown
