"""The Camelot wheel: twelve numbers in a circle of fifths, A for minor and B for major keys."""

from __future__ import annotations

from collections.abc import Iterable


def position(code: str) -> int:
    """A code such as "8A" as a number: twice its number, and one more for B; 2 to 25."""
    return 2 * int(code[:-1]) + (code[-1] == "B")


def code(position: int) -> str:
    """The reverse of :func:`position`."""
    return f"{position // 2}{'AB'[position % 2]}"


def neighbours(positions: Iterable[int]) -> set[int]:
    """``positions`` with the next and previous numbers (12 is next to 1) and the other letter of each."""
    found = set(positions)
    for at in tuple(found):
        number, letter = divmod(at, 2)
        found |= {2 * ((number + step - 1) % 12 + 1) + letter for step in (-1, 1)} | {2 * number + 1 - letter}
    return found
