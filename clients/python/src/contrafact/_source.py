"""What can be uploaded: a path, an open file, or bytes, all read in pieces from any position."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import re
import threading
from typing import BinaryIO

Uploadable = str | os.PathLike[str] | BinaryIO | bytes | bytearray | memoryview


class Source:
    """Bytes to upload.

    Attributes:
        name: what to call them.
        size: how many there are; None when unknown, as of a pipe.
        sha256: their SHA-256 in lower-case hexadecimal; empty when it cannot be known beforehand.
        seekable: whether they can be read again from any position.
    """

    def __init__(self, file: BinaryIO, name: str, owned: bool) -> None:
        self.name = name
        self.size: int | None = None
        self.sha256 = ""
        self.seekable = file.seekable()
        self._file = file
        self._owned = owned
        self._start = file.tell() if self.seekable else 0
        self._position = 0
        self._lock = threading.Lock()  # a broken attempt may still read while the next one begins

    async def measure(self) -> None:
        """Find out size and sha256, which reads everything once; not of what cannot be read twice."""
        if self.seekable:
            await asyncio.to_thread(self._measure)

    def _measure(self) -> None:
        self._file.seek(self._start)
        digest, size = hashlib.sha256(), 0
        while piece := self._file.read(1 << 20):
            digest.update(piece)
            size += len(piece)
        self.size, self.sha256 = size, digest.hexdigest()

    def read(self, position: int, size: int) -> bytes:
        """Return ``size`` bytes from ``position``, fewer only at the end.

        Raises:
            OSError: they cannot be read, or they lie behind in what cannot be read again.
        """
        with self._lock:
            if self.seekable:
                self._file.seek(self._start + position)
            elif position != self._position:
                raise OSError("what is uploaded cannot be read a second time")
            pieces, missing = [], size
            while missing and (piece := self._file.read(missing)):  # a pipe gives less than asked for
                pieces.append(piece)
                missing -= len(piece)
            self._position = position + size - missing
            return b"".join(pieces)

    def close(self) -> None:
        """Close the file, if it was opened here."""
        if self._owned:
            self._file.close()


def open_source(what: Uploadable, display_name: str | None = None) -> Source:
    """Open what is to be uploaded.

    Args:
        what: a path; a file open for reading in binary, read from where it stands; or bytes.
        display_name: what to call it; None: the file's name. Of a path only the last part is used.

    Raises:
        OSError: it cannot be opened.
        ValueError: bytes, or a file without a name, were given without a ``display_name``.
    """
    if isinstance(what, bytes | bytearray | memoryview):
        file: BinaryIO = io.BytesIO(what)
        own_name: object = None
    elif isinstance(what, str | os.PathLike):
        own_name = os.fspath(what)
    else:
        file, own_name = what, getattr(what, "name", None)
    name = base_name(display_name or (own_name if isinstance(own_name, str) else ""))
    if not name:
        raise ValueError("bytes and files without a name need a display_name")
    owned = isinstance(what, str | os.PathLike)
    return Source(open(what, "rb") if isinstance(what, str | os.PathLike) else file, name, owned)


def base_name(path: str) -> str:
    """Return what follows the last slash or backslash of a path, as text that any server can read."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1].encode(errors="replace").decode()
