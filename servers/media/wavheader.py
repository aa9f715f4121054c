"""The header of a float32 WAV file of known length, complete before the first sample.

Sources: Microsoft Multimedia Data Standards Update (RIFF, WAVE_FORMAT_IEEE_FLOAT, ``fact``), ``mmreg.h``
(WAVE_FORMAT_EXTENSIBLE, speaker positions), EBU Tech 3306 v1.1 (RF64, ``ds64``).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from servers.media.tags import riff_info

_IEEE_FLOAT = 3
_EXTENSIBLE = 0xFFFE
_SUBFORMAT_FLOAT = bytes.fromhex("0300000000001000800000aa00389b71")
_IN_DS64 = 0xFFFF_FFFF

_SPEAKERS = {3: 0x7, 4: 0x33, 5: 0x37, 6: 0x3F, 7: 0x70F, 8: 0x63F}
"""Channel masks by count, the orders FLAC uses too (RFC 9639 §9.1.3): 3.0, quad, 5.0, 5.1, 6.1, 7.1."""


def wav_header(*, sample_rate: int, channels: int, frames: int, tags: Mapping[str, str] | None = None) -> bytes:
    """Everything before the samples: plain RIFF below 4 GiB, RF64 above."""
    frame_bytes = 4 * channels
    data_bytes = frames * frame_bytes
    form = _format_chunk(sample_rate, channels)
    # Float files carry a fact chunk with the number of frames.
    body = form + struct.pack("<4sII", b"fact", 4, min(frames, _IN_DS64)) + riff_info(tags or {})
    riff_bytes = 4 + len(body) + 8 + data_bytes
    if riff_bytes <= 0xFFFF_FFFE:
        return struct.pack("<4sI4s", b"RIFF", riff_bytes, b"WAVE") + body + struct.pack("<4sI", b"data", data_bytes)
    riff_bytes += 36
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, riff_bytes, data_bytes, frames, 0)
    return struct.pack("<4sI4s", b"RF64", _IN_DS64, b"WAVE") + sizes + body + struct.pack("<4sI", b"data", _IN_DS64)


def _format_chunk(sample_rate: int, channels: int) -> bytes:
    frame_bytes = 4 * channels
    common = (channels, sample_rate, sample_rate * frame_bytes, frame_bytes, 32)
    if channels <= 2:
        return struct.pack("<4sIHHIIHHH", b"fmt ", 18, _IEEE_FLOAT, *common, 0)
    mask = _SPEAKERS[channels]
    return struct.pack("<4sIHHIIHHHHI", b"fmt ", 40, _EXTENSIBLE, *common, 22, 32, mask) + _SUBFORMAT_FLOAT
