"""Checksums, temporary folders and progress lines: what the cache and the sources share."""

from __future__ import annotations

import hashlib
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ._errors import WeightsCorrupt

MIB = 1024 * 1024


def say(text: str) -> None:
    """One progress line for a person, on standard error."""
    print(f"weights: {text}", file=sys.stderr, flush=True)


def sha256(file: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(file: Path, size: int | None, digest: str, shown: object = None) -> None:
    """Raise `WeightsCorrupt` unless ``file`` has ``size`` bytes (None: any number) and the SHA-256 ``digest``.

    ``shown`` replaces the path in the message, for files whose temporary name says nothing.
    """
    if (actual_size := file.stat().st_size) != size and size is not None:
        raise WeightsCorrupt(shown or file, "size", f"{size} bytes", f"{actual_size} bytes")
    if (actual := sha256(file)) != digest:
        raise WeightsCorrupt(shown or file, "sha256", digest, actual)


@contextmanager
def scratch(folder: Path, name: str) -> Iterator[Path]:
    """A temporary folder inside ``folder``, so that a rename out of it is atomic. Always removed.

    Call with the set's lock held: what a killed process left behind is removed first.
    """
    prefix = f".{name}-fetch-"
    for stale in folder.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as temporary:
        yield Path(temporary)


class Stream(Protocol):
    """What `copy` needs of a source of bytes: a read that returns as soon as something has come."""

    def read1(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""
        ...


def copy(
    stream: Stream,
    file: Path,
    shown: str,
    *,
    limit: int,
    start: int = 0,
    size: int | None = None,
    until: float = math.inf,
) -> int:
    """Write ``stream`` to ``file``, saying every tenth of ``size`` bytes how far it is.

    Args:
        stream, file: from where, to where.
        shown: what to call it.
        limit: bytes the file may have.
        start: bytes of the file that are there already and stay.
        size: bytes it will have, if known.
        until: of `time.monotonic`, when to give up.

    Returns:
        The bytes that the file has now.

    Raises:
        WeightsCorrupt: there is more than ``limit``.
        TimeoutError: it is later than ``until``.
    """
    done, said = start, start * 10 // size if size else 0
    with file.open("r+b" if start else "wb") as out:
        out.seek(start)
        out.truncate()
        while block := stream.read1(MIB):
            done += len(block)
            if done > limit:
                raise WeightsCorrupt(shown, "size", f"at most {limit} bytes", "more")
            out.write(block)
            if size and (tenth := done * 10 // size) > said:
                said = tenth
                say(f"{shown}: {tenth * 10} % of {size / 1e6:.0f} MB")
            if time.monotonic() > until:
                raise TimeoutError("the download takes too long")
    return done
