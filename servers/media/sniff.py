"""What a file is, by its content. Names and media types are hints of strangers and are never looked at."""

from __future__ import annotations

from enum import StrEnum
from typing import BinaryIO

from servers.media import mpegaudio
from servers.media.errors import MediaError, Reason

_WINDOW = 131_072
"""Bytes looked at, so that zeros after a tag (padding beyond its stated length) can be skipped."""


class Container(StrEnum):
    """The containers we accept, by the names we store."""

    MP3 = "mp3"
    MP4 = "mp4"
    FLAC = "flac"
    OGG = "ogg"
    WAV = "wav"
    AIFF = "aiff"
    ADTS = "adts"


_MP4_FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}

_OTHER_MEDIA = (  # (offset, magic): recordings, but of kinds we do not accept
    (0, b"\x1a\x45\xdf\xa3"),  # Matroska, WebM
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # ASF: WMA, WMV
    (0, b"riff\x2e\x91\xcf\x11"),  # Sony Wave64
    (0, b"RIFX"),
    (8, b"AVI "),
    (0, b"caff"),
    (0, b".snd"),
    (0, b"FLV\x01"),
    (0, b"wvpk"),
    (0, b"MAC "),
    (0, b"TTA1"),
    (0, b"DSD "),
    (0, b"FRM8"),
    (0, b"MThd"),
    (0, b"#!AMR"),
    (0, b".RMF"),
    (0, b"\x00\x00\x01\xba"),  # MPEG program stream
    (0, b"\x0b\x77"),  # AC-3
)

_NOT_MEDIA = (b"PK\x03\x04", b"Rar!", b"7z\xbc\xaf", b"\x1f\x8b", b"%PDF", b"\x7fELF", b"<", b"#")
"""Starts of files that may *contain* MPEG frames (a zip that stores an mp3) without being a recording."""


def sniff(file: BinaryIO, size: int) -> tuple[Container, int]:
    """Name the container of an open file and say where it begins, after any ID3v2 tags.

    Raises:
        MediaError: ``EMPTY_FILE``, ``NOT_AUDIO``, ``UNSUPPORTED_CONTAINER`` or ``TRUNCATED``.
    """
    if size == 0:
        raise MediaError(Reason.EMPTY_FILE, "The file is empty.")
    offset = _after_id3(file, size)
    file.seek(offset)
    data = file.read(_WINDOW)
    if found := _by_magic(data):
        return found, offset
    transport_stream = len(data) > 376 and data[0] == data[188] == data[376] == 0x47
    if transport_stream or any(data[at : at + len(magic)] == magic for at, magic in _OTHER_MEDIA):
        raise MediaError(
            Reason.UNSUPPORTED_CONTAINER,
            "This kind of media file is not accepted; send MP3, M4A, AAC, FLAC, Ogg, WAV or AIFF.",
        )
    complete = offset + len(data) >= size
    if not data.startswith(_NOT_MEDIA) and (found := _by_frames(data, complete=complete)):
        return found, offset
    raise MediaError(Reason.NOT_AUDIO, "The content is not audio in a format we know.")


def _after_id3(file: BinaryIO, size: int) -> int:
    """Skip ID3v2 tags (ID3v2.4 §3.1), of which sloppy taggers leave several."""
    offset = 0
    while True:
        file.seek(offset)
        head = file.read(10)
        if len(head) < 10 or head[:3] != b"ID3" or any(byte & 0x80 for byte in head[6:10]):
            return offset
        length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        offset += 10 + length + (10 if head[5] & 0x10 else 0)
        if offset >= size:
            raise MediaError(Reason.TRUNCATED, "The file ends within or right after its tags.")


def _by_magic(data: bytes) -> Container | None:
    kind, form = data[:4], data[8:12]
    if kind == b"fLaC":
        return Container.FLAC
    if kind == b"OggS":
        return Container.OGG
    if kind in (b"RIFF", b"RF64", b"BW64") and form == b"WAVE":
        return Container.WAV
    if kind == b"FORM" and form in (b"AIFF", b"AIFC"):
        return Container.AIFF
    if data[4:8] in _MP4_FIRST_BOXES:
        return Container.MP4
    return None


def _by_frames(data: bytes, *, complete: bool) -> Container | None:
    # ADTS first: its twelve sync bits with layer 0 exclude mp3, but a long AAC frame may hold fake mp3 syncs.
    stripped = data.lstrip(b"\0")
    starts = mpegaudio.adts_header(stripped, 0) is not None
    if starts and mpegaudio.is_stream(stripped, mpegaudio.adts_header, complete=complete):
        return Container.ADTS
    if mpegaudio.is_stream(stripped, mpegaudio.mp3_header, complete=complete):
        return Container.MP3
    return None
