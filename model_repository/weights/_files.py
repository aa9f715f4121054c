"""Checksums, temporary folders and progress lines: what the cache and the sources share."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ._errors import WeightsCorrupt

MIB = 1024 * 1024


def say(text: str) -> None:
    """One progress line for a person, on standard error."""
    print(f"weights: {text}", file=sys.stderr, flush=True)


def sha256(file: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(file: Path, size: int, digest: str, shown: object = None) -> None:
    """Raise `WeightsCorrupt` unless ``file`` has ``size`` bytes and the SHA-256 ``digest``.

    ``shown`` replaces the path in the message, for files whose temporary name says nothing.
    """
    if (actual_size := file.stat().st_size) != size:
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


def copy(stream: BinaryIO, file: Path, size: int | None, shown: str) -> None:
    """Write ``stream`` to ``file``, saying every tenth of ``size`` bytes how far it is."""
    done = said = 0
    with file.open("wb") as out:
        while block := stream.read(MIB):
            out.write(block)
            done += len(block)
            if size and (tenth := done * 10 // size) > said:
                said = tenth
                say(f"{shown}: {tenth * 10} % of {size / 1e6:.0f} MB")
