"""What comes in to be played: a library in pieces, then notes in order."""

from __future__ import annotations

import hashlib

import numpy as np
from contrafact.engine.v1.grains_pb2 import GrainLibrary, LibraryPiece, NoteBatch

from servers.grains.library import InvalidLibrary, parsed
from servers.grains.notes import Notes, from_batch
from servers.platform.errors import ApiError, invalid

STEP_NOTES = 8
"""The most that a step takes in. Each may have 16 grains, each of which may be compared with 200,000."""


class Upload:
    """The bytes of a library.

    Args:
        sha256: of them, hexadecimal.
        size: how many.
    """

    def __init__(self, sha256: str, size: int) -> None:
        self._sha256, self._size = sha256, size
        self._received = 0
        self._data = bytearray()

    @property
    def complete(self) -> bool:
        """Whether all came."""
        return self._received == self._size

    def add(self, piece: LibraryPiece, keep: bool) -> None:
        """Take in a piece; without ``keep`` it is only counted.

        Raises:
            ApiError: it does not fit.
        """
        if piece.offset != self._received:
            message = f"the library goes on at byte {self._received}, not {piece.offset}"
            raise invalid("WRONG_START", message, "library.offset", expected=str(self._received))
        self._received += len(piece.data)
        if self._received > self._size:
            raise self.wrong(f"it has more than the {self._size} bytes that were announced")
        if keep:
            self._data += piece.data

    def check_complete(self) -> None:
        """Raise ApiError if bytes are missing."""
        if not self.complete:
            raise self.wrong(f"the end came after {self._received} of {self._size} bytes")

    def library(self) -> GrainLibrary:
        """What the bytes are; they are dropped. Call once, last.

        Raises:
            InvalidLibrary: they have another SHA-256, or are no library.
        """
        data, self._data = self._data, bytearray()
        if hashlib.sha256(data).hexdigest() != self._sha256:
            raise InvalidLibrary("its bytes have not the SHA-256 that was announced")
        return parsed(data)

    @staticmethod
    def wrong(message: str) -> ApiError:
        """INVALID_LIBRARY."""
        return invalid("INVALID_LIBRARY", message, "library.data")


class Order:
    """Checks that notes come in order.

    Args:
        frames: of the audio.
    """

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self._until = 0

    def notes(self, batch: NoteBatch) -> list[tuple[Notes, int]]:
        """The notes of a batch, a few at a time, each time with the frame before which no others will begin.

        Raises:
            ApiError: UNEXPECTED_DATA, the field at fault named.
        """
        begin, until = self._until, batch.until
        if not begin <= until <= self._frames:
            message = f"it must be from {begin}, where it was before, to {self._frames}, the end"
            raise invalid("UNEXPECTED_DATA", message, "notes.until")
        notes = from_batch(batch)
        starts = notes.starts
        for wrong, field, message in (
            (np.diff(starts, prepend=begin - 1) < 1, "start", f"starts must ascend, from frame {begin} on"),
            (starts >= until, "start", f"it must be before frame {until}, before which all notes begin that came"),
            (notes.frames > self._frames - starts, "frames", f"the note ends after frame {self._frames}, the end"),
        ):
            if wrong.any():
                raise invalid("UNEXPECTED_DATA", message, f"notes.notes[{int(np.argmax(wrong))}].{field}")
        self._until = until
        edges = list(range(0, len(notes), STEP_NOTES))
        untils = [*(int(starts[edge]) for edge in edges[1:]), until]
        return [(notes.part(edge, edge + STEP_NOTES), each) for edge, each in zip(edges or [0], untils, strict=True)]
