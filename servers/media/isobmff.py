"""MP4 structure: complete, described, and not encrypted (ISO/IEC 14496-12, QuickTime File Format)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from servers.media.errors import MediaError, Reason

_MAX_BOXES = 100_000
"""More top-level boxes than a day of fragments at two a second; each costs one seek."""

_ENCRYPTED_ENTRIES = {b"enca", b"encv", b"drms", b"drmi", b"aavd"}
"""Sample entries: Common Encryption (ISO/IEC 23001-7), FairPlay, Audible."""

_ENCRYPTED_BRANDS = {b"aax ", b"aaxc", b"M4P "}

_PATH = {b"moov": b"trak", b"trak": b"mdia", b"mdia": b"minf", b"minf": b"stbl", b"stbl": b"stsd"}


def check(file: BinaryIO, size: int, offset: int) -> None:
    """Refuse files that are cut, lack their index or are encrypted.

    Raises:
        MediaError: ``TRUNCATED``, ``CORRUPT`` or ``ENCRYPTED``.
    """
    moov: tuple[int, int] | None = None
    for kind, start, end in _boxes(file, offset, size):
        if end > size:
            raise MediaError(Reason.TRUNCATED, f"{end - size} bytes of the file are missing.")
        if kind == b"ftyp":
            file.seek(start)
            if file.read(4) in _ENCRYPTED_BRANDS:
                raise _encrypted()
        if kind == b"moov" and moov is None:
            moov = start, end
    if moov is None:
        raise MediaError(Reason.CORRUPT, "The MP4 file lacks its index (moov): it was not finished.")
    if any(entry in _ENCRYPTED_ENTRIES for entry in _sample_entries(file, b"moov", *moov)):
        raise _encrypted()


def _encrypted() -> MediaError:
    return MediaError(Reason.ENCRYPTED, "The file is encrypted (DRM) and cannot be played here.")


def _sample_entries(file: BinaryIO, kind: bytes, start: int, end: int) -> Iterator[bytes]:
    """The format of every sample entry of every track, found by descending moov/trak/mdia/minf/stbl/stsd."""
    if kind == b"stsd":
        # A full box with a count precedes the entries, which are boxes themselves.
        yield from (entry for entry, _, _ in _boxes(file, start + 8, end))
        return
    for child, child_start, child_end in _boxes(file, start, end):
        if child == _PATH[kind]:
            yield from _sample_entries(file, child, child_start, min(child_end, end))


def _boxes(file: BinaryIO, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Boxes in ``[at, end)``: (type, start of the content, stated end, which may lie beyond ``end``)."""
    for _ in range(_MAX_BOXES):
        if at >= end:
            return
        file.seek(at)
        head = file.read(16)
        if at + 8 > end or len(head) < 8:
            # Encoders pad with a few zeros at most; anything else is a box that was cut in its header.
            if any(head[: end - at]):
                raise MediaError(Reason.TRUNCATED, "The file ends within a box.")
            return
        length, kind = struct.unpack(">I4s", head[:8])
        start = at + 8
        if length == 1 and len(head) == 16:
            length = struct.unpack(">Q", head[8:])[0]
            start = at + 16
        elif length == 0:
            length = end - at
        if length < start - at:
            raise MediaError(Reason.CORRUPT, "The MP4 structure is damaged.")
        yield kind, start, at + length
        at += length
    raise MediaError(Reason.CORRUPT, "The MP4 structure is damaged.")
