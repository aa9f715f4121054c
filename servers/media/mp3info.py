"""The "Info" frame: an mp3's first, silent frame, which says how long the audio is and what to trim from it.

Encoders write it last, seeking back to the start. At a constant bit rate everything in it is known before the
first sample, so an append-only stream can carry it too, and players and decoders get the exact length,
gaplessly.

Source: LAME "Mp3 Info Tag revision 1" specification; layout as in LAME's ``VbrTag.c``.
"""

from __future__ import annotations

import struct

SAMPLES_PER_FRAME = 1_152
ENCODER_DELAY = 576
"""Samples LAME delays by; the decoder adds 529 more, always."""
DECODER_DELAY = 529


def mpeg_frames(frames: int) -> int:
    """How many MPEG-1 frames it takes until ``frames`` samples have left encoder and decoder."""
    # Two at least, which LAME always makes: libav does not recognise an mp3 with less.
    return max(2, -(-(frames + ENCODER_DELAY + DECODER_DELAY) // SAMPLES_PER_FRAME))


def info_frame(header: bytes, *, sample_rate: int, kilobits: int, frames: int) -> bytes:
    """Build the Info frame.

    Args:
        header: the 4 header bytes of the stream's first real frame.
        sample_rate: 32000, 44100 or 48000.
        kilobits: the constant bit rate per second.
        frames: samples per channel of the original.
    """
    mono = header[3] >> 6 == 3
    length = 144_000 * kilobits // sample_rate
    count = mpeg_frames(frames)
    # Padding slots make a stream's mean frame length exact: total bits = count * 1152 * bit rate / sample
    # rate.
    stream_bytes = length + count * 144_000 * kilobits // sample_rate
    # Unprotected, without padding slot.
    tag = bytes((header[0], header[1] | 1, header[2] & ~2, header[3]))
    tag += bytes(17 if mono else 32)
    tag += struct.pack(">4sIII", b"Info", 0x0F, count, min(stream_bytes, 0xFFFF_FFFF))
    tag += bytes(position * 256 // 100 for position in range(100))  # the seek table of a constant rate
    tag += struct.pack(">I", 0)  # quality
    padding = count * SAMPLES_PER_FRAME - frames - ENCODER_DELAY
    delays = (ENCODER_DELAY << 12 | padding).to_bytes(3, "big")
    # Version; revision 0 and CBR; lowpass and replay gain unknown; flags; bit rate (255 = that or more).
    tag += b"LAME3.100" + bytes((0x01, 0)) + bytes(8) + bytes((0, min(kilobits, 255))) + delays
    tag += bytes(1 + 1 + 2)  # misc, mp3 gain, preset
    tag += struct.pack(">IH", min(stream_bytes, 0xFFFF_FFFF), 0)  # music CRC: unknown in advance
    tag += struct.pack(">H", _crc16(tag))
    return tag + bytes(length - len(tag))


def _crc16(data: bytes) -> int:
    """CRC-16/ARC, as LAME computes it over everything before the field."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return crc
