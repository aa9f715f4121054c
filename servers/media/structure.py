"""Does a file keep its own promises? Checks of container structure, before libav sees a byte.

libav plays whatever is there and stays silent about what is missing. For a system whose stems must have the
track's exact length, a file that claims more audio than it holds is a broken upload, so it is refused:

* WAV, AIFF: a sound chunk longer than the file is ``TRUNCATED``. Writers that could not seek back leave
  sentinels (0, 0xFFFFFFFF and near, SoX's 0x7FFFF000) for "until the end"; those are fine.
* MP4: a box that ends beyond the file is ``TRUNCATED``; no ``moov`` is ``CORRUPT``.
* Ogg: a last page that is cut short is ``TRUNCATED``. A missing end-of-stream flag is not: radio recordings
  are made by closing the file.
* FLAC: the promised total is returned here and compared after decoding.
* MP3, ADTS: nothing to check. They are sequences of frames, meant to be cut anywhere.

Sources: RIFF (Microsoft MMREG), RF64 (EBU Tech 3306), AIFF-C, ISO/IEC 14496-12, RFC 3533, RFC 9639.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from servers.media import isobmff
from servers.media.errors import MediaError, Reason
from servers.media.sniff import Container

MAX_CHANNELS = 8
_MAX_CHUNKS = 10_000
_UNKNOWN_64 = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True, slots=True)
class Promise:
    """What a header states: frames per channel and bits per sample; ``None`` where it does not say
    exactly.
    """

    frames: int | None = None
    bit_depth: int | None = None


def promise(file: BinaryIO, size: int, container: Container, offset: int) -> Promise:
    """Check the structure of an open file and return what it promises.

    Args:
        file: positioned anywhere; left anywhere.
        size: bytes in the file.
        container: what :func:`servers.media.sniff.sniff` found.
        offset: where the container begins.

    Raises:
        MediaError: ``TRUNCATED``, ``CORRUPT``, ``ENCRYPTED``, ``NO_FRAMES`` or ``TOO_MANY_CHANNELS``.
    """
    if container is Container.WAV:
        return Promise(frames=_wav(file, size, offset))
    if container is Container.AIFF:
        return Promise(frames=_aiff(file, size, offset))
    if container is Container.FLAC:
        return _flac(file, offset)
    if container is Container.MP4:
        isobmff.check(file, size, offset)
    if container is Container.OGG:
        _ogg(file, size)
    return Promise()


def _read(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    data = file.read(length)
    if len(data) < length:
        raise MediaError(Reason.TRUNCATED, "The file ends within its header.")
    return data


def _chunks(file: BinaryIO, size: int, at: int, layout: str) -> Iterator[tuple[bytes, int, int]]:
    """Walk the chunks of an IFF file: (identifier, position of the content, stated length)."""
    for _ in range(_MAX_CHUNKS):
        if at + 8 > size:
            return
        kind, length = struct.unpack(layout, _read(file, at, 8))
        yield kind, at + 8, length
        at += 8 + length + (length & 1)
    raise MediaError(Reason.CORRUPT, "The file has absurdly many chunks.")


def _check_channels(channels: int, rate: float) -> None:
    if channels < 1 or rate <= 0:
        raise MediaError(Reason.CORRUPT, "The header states no channels or no sample rate.")
    if channels > MAX_CHANNELS:
        raise MediaError(Reason.TOO_MANY_CHANNELS, f"The file has {channels} channels; at most {MAX_CHANNELS} fit.")


def _wav(file: BinaryIO, size: int, offset: int) -> int | None:
    riff_length = struct.unpack("<I", _read(file, offset + 4, 4))[0]
    large = _read(file, offset, 4) != b"RIFF"
    large_length: int | None = None
    frame_bytes = 0
    for kind, at, length in _chunks(file, size, offset + 12, "<4sI"):
        if kind == b"ds64" and large:
            large_length = struct.unpack("<Q", _read(file, at + 8, 8))[0]
        elif kind == b"fmt ":
            _, channels, rate, _, frame_bytes = struct.unpack("<HHIIH", _read(file, at, 14))
            _check_channels(channels, rate)
            if frame_bytes == 0:
                raise MediaError(Reason.CORRUPT, "The header states frames of no bytes.")
        elif kind == b"data":
            if frame_bytes == 0:
                raise MediaError(Reason.CORRUPT, "The sound comes before the description of its format.")
            if large and length == 0xFFFF_FFFF:
                if large_length is None:
                    raise MediaError(Reason.CORRUPT, "A 64-bit WAV file lacks its table of sizes.")
                length = large_length
            available = size - at
            if length == 0 and available > 0 and riff_length + 8 != size - offset:
                return None  # not filled in afterwards: a stream
            if (length >= 0xFFFF_FF00 and (not large or length == _UNKNOWN_64)) or length == 0x7FFF_F000:
                return None
            if length > available:
                raise MediaError(Reason.TRUNCATED, f"{length - available} bytes of the sound are missing.")
            return int(length // frame_bytes)
    raise MediaError(Reason.TRUNCATED, "The file ends before its sound begins.")


def _aiff(file: BinaryIO, size: int, offset: int) -> int:
    frames: int | None = None
    sound = False
    for kind, at, length in _chunks(file, size, offset + 12, ">4sI"):
        if at + length > size:
            raise MediaError(Reason.TRUNCATED, f"{at + length - size} bytes of the file are missing.")
        if kind == b"COMM":
            channels, frames, _ = struct.unpack(">HIH", _read(file, at, 8))
            # An 80-bit extended float is zero only if its mantissa is; its top bit is the sign.
            rate_sign_exponent, mantissa = struct.unpack(">HQ", _read(file, at + 8, 10))
            _check_channels(channels, 0 if rate_sign_exponent >> 15 or not mantissa else 1)
        sound = sound or kind == b"SSND"
    if frames is None or (not sound and frames > 0):
        raise MediaError(Reason.TRUNCATED, "The file ends before its sound begins.")
    if frames == 0:
        raise MediaError(Reason.NO_FRAMES, "The file contains no sound.")
    return frames


def _flac(file: BinaryIO, offset: int) -> Promise:
    """STREAMINFO, RFC 9639 §8.2; a total of zero means that the encoder did not know."""
    header = _read(file, offset, 8 + 34)
    if header[4] & 0x7F != 0 or header[5:8] != b"\0\0\x22":
        raise MediaError(Reason.CORRUPT, "The FLAC file does not begin with its stream information.")
    packed = int.from_bytes(header[18:26], "big")
    if packed >> 44 == 0:
        raise MediaError(Reason.CORRUPT, "The header states no sample rate.")
    return Promise(frames=packed & 0xF_FFFF_FFFF or None, bit_depth=(packed >> 36 & 0x1F) + 1)


def _ogg(file: BinaryIO, size: int) -> None:
    """The last page must be whole. A page is at most 65,307 bytes (RFC 3533 §6)."""
    window = min(size, 2 * 65_307)
    tail = _read(file, size - window, window)
    at = len(tail)
    while (at := tail.rfind(b"OggS", 0, at)) >= 0:
        if at + 27 > len(tail) or at + 27 + tail[at + 26] > len(tail):
            raise MediaError(Reason.TRUNCATED, "The file ends within a page.")
        if tail[at + 4] != 0:
            continue  # the four letters by accident, within a packet
        lengths = tail[at + 27 : at + 27 + tail[at + 26]]
        if at + 27 + len(lengths) + sum(lengths) > len(tail):
            raise MediaError(Reason.TRUNCATED, "The file ends within a page.")
        return
