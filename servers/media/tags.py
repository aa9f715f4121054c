"""What a file says about itself: its title, artist and a comment, as each format writes them.

Sources: Vorbis I specification §5 and RFC 9639 §8.6 (FLAC), ID3v2.4.0 structure and frames (MP3), Microsoft's
Multimedia Programming Interface and Data Specifications 1.0 (WAV: ``LIST`` ``INFO``; in UTF-8, as players read it).
Opus' tags are written by libav.
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Mapping

MAX_CHARACTERS = 1_000
VORBIS = {"title": "TITLE", "artist": "ARTIST", "comment": "DESCRIPTION"}
"""The tags there are, by their names in Vorbis comments."""

_ID3 = {"title": b"TIT2", "artist": b"TPE1", "comment": b"COMM"}
_INFO = {"title": b"INAM", "artist": b"IART", "comment": b"ICMT"}
_VENDOR = b"contrafact"


def clean(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as they are written: without control characters and lone surrogates, cut at 1,000 characters, in the order
    of ``VORBIS``, and without those that are empty.

    Raises:
        ValueError: there is no such tag.
    """
    if unknown := tags.keys() - VORBIS.keys():
        raise ValueError(f"no such tag: {', '.join(sorted(unknown))} (there are: {', '.join(VORBIS)})")
    values = {name: _clean(tags.get(name, "")) for name in VORBIS}
    return {name: value for name, value in values.items() if value}


def _clean(value: str) -> str:
    kept = (character for character in value if unicodedata.category(character) not in ("Cc", "Cs"))
    return "".join(kept)[:MAX_CHARACTERS]


def vorbis_comment(tags: Mapping[str, str]) -> bytes:
    """The body of a Vorbis comment, without Vorbis' framing bit."""
    fields = [f"{VORBIS[name]}={value}".encode() for name, value in tags.items()]
    return (
        struct.pack("<I", len(_VENDOR))
        + _VENDOR
        + struct.pack("<I", len(fields))
        + b"".join(struct.pack("<I", len(field)) + field for field in fields)
    )


def id3(tags: Mapping[str, str]) -> bytes:
    """An ID3v2.4 tag; nothing if there are no tags."""
    frames = b""
    for name, value in tags.items():
        # UTF-8; a comment also has a language, unknown here, and a short description, empty here.
        body = b"\x03" + (b"XXX\0" if name == "comment" else b"") + value.encode()
        frames += _ID3[name] + _synchsafe(len(body)) + b"\0\0" + body
    return b"ID3\x04\0\0" + _synchsafe(len(frames)) + frames if frames else b""


def _synchsafe(number: int) -> bytes:
    """28 bits in four bytes of seven, so that no decoder takes them for the start of a frame (§6.2)."""
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))


def riff_info(tags: Mapping[str, str]) -> bytes:
    """A ``LIST`` chunk of the form ``INFO``; nothing if there are no tags."""
    chunks = b""
    for name, value in tags.items():
        text = value.encode() + b"\0"
        chunks += struct.pack("<4sI", _INFO[name], len(text)) + text + bytes(len(text) % 2)
    return struct.pack("<4sI4s", b"LIST", 4 + len(chunks), b"INFO") + chunks if chunks else b""
