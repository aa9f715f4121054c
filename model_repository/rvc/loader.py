"""Loading a voice: what names it, what can go wrong, and the way from its files to the network."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from .checkpoint import CheckpointError

V = TypeVar("V")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Key:
    """Which version of which voice.

    Args:
        voice: its id: a UUID, or another name of letters, digits, ``-`` and ``_``.
        weights: SHA-256 of the ``.pth``, in hexadecimal.
        index: SHA-256 of the ``.index``, empty if there is none.

    Raises:
        ValueError: one of them is no such thing.
    """

    voice: str
    weights: str
    index: str = ""

    def __post_init__(self) -> None:
        check_name(self.voice)
        for name, digest in (("weights", self.weights), ("index", self.index or "0" * 64)):
            if not _DIGEST.fullmatch(digest):
                raise ValueError(f"{name} {digest!r:.80} is no SHA-256 in hexadecimal")


def check_name(voice: str) -> None:
    """Raise ValueError unless ``voice`` can be the id of a voice; it becomes the name of a folder."""
    if not _NAME.fullmatch(voice):
        raise ValueError(f"{voice!r:.80} is no id of a voice")


class VoiceError(Exception):
    """A voice that cannot be used now.

    Attributes:
        word: what the error's message begins with, for programs.
        status: of the answer, by Triton's name.
    """

    word = ""
    status = "UNAVAILABLE"


class VoiceLoading(VoiceError):
    """It is not there yet: ask again."""

    word = "VOICE_LOADING"


class VoiceNotFound(VoiceError):
    """There are no such files."""

    word = "VOICE_NOT_FOUND"
    status = "NOT_FOUND"


class VoiceRefused(VoiceError):
    """Its files are no good: ``reason`` is an UPPER_SNAKE word, see also `CheckpointError`."""

    word = "VOICE_REFUSED"
    status = "INVALID_ARG"

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason = reason


class VoiceStoreError(VoiceError):
    """Its files cannot be fetched or kept now."""

    word = "VOICE_STORE"


class Source(Protocol):
    """Where files of voices come from."""

    def held(self, key: Key) -> AbstractContextManager[tuple[Path, Path | None]]:
        """The verified ``.pth`` and ``.index`` of a voice, which stay while in the block."""
        ...


def loader(files: Source, load: Callable[[Path, Path | None], V]) -> Callable[[Key], V]:
    """What a `Pool` loads with: fetches, verifies and loads a voice, or raises `VoiceError`."""

    def run(key: Key) -> V:
        with files.held(key) as (weights, index):
            try:
                return load(weights, index)
            except CheckpointError as error:
                raise VoiceRefused(error.reason, str(error)) from None

    return run
