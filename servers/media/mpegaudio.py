"""MPEG audio frame headers: telling real mp3 and ADTS streams from bytes that merely look like one.

libav's mp3 demuxer scans ahead for anything that resembles a sync word, so it "plays" text and random bytes.
We ask for a chain of headers that point at each other instead. One random position passes as a header with
p ≈ 6e-5, and as a *consistent* next header with p ≈ 7e-6, so a chain of four in noise has p < 1e-15.

Sources: ISO/IEC 11172-3 §2.4.1.3 and 13818-3 (mp3), ISO/IEC 13818-7 §6.2 (ADTS).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_CHAIN = 4
"""Consecutive consistent headers that prove a stream (fewer if the file ends first)."""

_SEARCH = 4_096
"""Bytes in which the first frame must begin: more than the longest frame, for streams cut at their start."""

_BITRATES = {  # kbit/s of layer III by (is MPEG-1), index 1..14
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_ADTS_RATES = 13


@dataclass(frozen=True, slots=True)
class Header:
    """One frame header: its length in bytes and the fields that may not change within a stream."""

    length: int
    identity: tuple[int, ...]


def mp3_header(data: bytes, at: int) -> Header | None:
    """Parse a layer III header at ``at``; ``None`` if there is none (free format is not supported)."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE0 != 0xE0:
        return None
    version, layer = data[at + 1] >> 3 & 3, data[at + 1] >> 1 & 3
    bitrate, rate = data[at + 2] >> 4, data[at + 2] >> 2 & 3
    if version == 1 or layer != 1 or bitrate in (0, 15) or rate == 3 or data[at + 3] & 3 == 2:
        return None
    mpeg1 = version == 3
    bits = _BITRATES[mpeg1][bitrate - 1] * 1000
    length = (144 if mpeg1 else 72) * bits // _RATES[version][rate] + (data[at + 2] >> 1 & 1)
    return Header(length, (version, rate))


def adts_header(data: bytes, at: int) -> Header | None:
    """Parse an ADTS (raw AAC) header at ``at``; ``None`` if there is none."""
    if at + 7 > len(data) or data[at] != 0xFF or data[at + 1] & 0xF6 != 0xF0:
        return None
    rate = data[at + 2] >> 2 & 15
    length = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
    if rate >= _ADTS_RATES or length < 7:
        return None
    channels = (data[at + 2] & 1) << 2 | data[at + 3] >> 6
    return Header(length, (data[at + 1] >> 3 & 1, data[at + 2] >> 6, rate, channels))


def is_stream(data: bytes, header: Callable[[bytes, int], Header | None], *, complete: bool) -> bool:
    """Whether ``data`` contains a chain of frames.

    Args:
        data: the bytes after any ID3v2 tags; several frames of them.
        header: :func:`mp3_header` or :func:`adts_header`.
        complete: ``data`` reaches the end of the file, so a chain may end there early. One frame is then
            enough at the very start, two elsewhere.
    """
    at = data.find(b"\xff", 0, _SEARCH)
    while at >= 0:
        length, reached_end = _chain(data, at, header)
        if length >= _CHAIN or (complete and reached_end and length >= (1 if at == 0 else 2)):
            return True
        at = data.find(b"\xff", at + 1, _SEARCH)
    return False


def _chain(data: bytes, at: int, header: Callable[[bytes, int], Header | None]) -> tuple[int, bool]:
    """Count consistent headers from ``at`` on (at most ``_CHAIN``) and say whether they reach the end."""
    identity: tuple[int, ...] | None = None
    for count in range(_CHAIN):
        found = header(data, at)
        if found is None or (identity is not None and found.identity != identity):
            # An ID3v1 or APE tag after the last frame is the usual end of an mp3.
            tagged = data[at : at + 3] == b"TAG" or data[at : at + 8] == b"APETAGEX"
            return count, at >= len(data) - 4 or tagged
        identity = found.identity
        at += found.length
    return _CHAIN, False
