"""Just enough of WAV to convert a voice from file to file: mono float32 in pieces, in and out."""

from __future__ import annotations

import array
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PIECE_FRAMES = 16_384
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE


@dataclass(frozen=True)
class WavHead:
    """What a WAV file says about itself.

    Attributes:
        sample_rate: frames per second.
        channels: 1 or more.
        code: PCM (16 bits) or FLOAT (32 bits).
        start: position of its first sample.
        frames: how many it has.
    """

    sample_rate: int
    channels: int
    code: int
    start: int
    frames: int


def read_head(path: Path) -> WavHead:
    """Read the head of a WAV file.

    Raises:
        ValueError: it is none, or its samples are neither 16-bit PCM nor 32-bit float.
    """
    with path.open("rb") as file:
        riff = file.read(12)
        if riff[:4] != b"RIFF" or riff[8:] != b"WAVE":
            raise ValueError(f"{path} is no WAV file")
        form: tuple[int, ...] | None = None
        while len(head := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            if name == b"data" and form is not None:
                return _head(path, form, file, size)
            body = file.read(min(size, 64))
            if name == b"fmt " and len(body) >= 16:
                form = struct.unpack_from("<HHIIHH", body)
                if form[0] == EXTENSIBLE and len(body) >= 26:
                    form = (*struct.unpack_from("<H", body, 24), *form[1:])
            file.seek(size + size % 2 - len(body), 1)
    raise ValueError(f"{path} is a damaged WAV file")


def _head(path: Path, form: tuple[int, ...], file: BinaryIO, size: int) -> WavHead:
    code, channels, rate, _, _, bits = form
    if (code, bits) not in ((PCM, 16), (FLOAT, 32)) or not channels:
        raise ValueError(f"{path} is neither 16-bit PCM nor 32-bit float")
    start = file.tell()
    size = min(size, path.stat().st_size - start)  # recorders that were killed leave any size there
    return WavHead(rate, channels, code, start, size // (channels * bits // 8))


def read_mono(path: Path, head: WavHead) -> Iterator[bytes]:
    """Yield the samples as mono float32, little-endian; of several channels their mean."""
    width = head.channels * (2 if head.code == PCM else 4)
    with path.open("rb") as file:
        file.seek(head.start)
        left = head.frames
        while left > 0 and (data := file.read(min(left, PIECE_FRAMES) * width)):
            data = data[: len(data) - len(data) % width]
            left -= PIECE_FRAMES
            yield data if (head.code, head.channels) == (FLOAT, 1) else _mono(data, head)


def _mono(data: bytes, head: WavHead) -> bytes:
    given = array.array("h" if head.code == PCM else "f", data)
    if sys.byteorder == "big":
        given.byteswap()
    scale = 1 / (head.channels * (32_768 if head.code == PCM else 1))
    mono = array.array(
        "f", (sum(frame) * scale for frame in zip(*[iter(given)] * head.channels, strict=True))
    )
    if sys.byteorder == "big":
        mono.byteswap()
    return mono.tobytes()


def float_head(sample_rate: int, frames: int) -> bytes:
    """Return the head of a WAV file with so many frames of mono float32.

    Raises:
        ValueError: they do not fit in a WAV file.
    """
    size = frames * 4
    if size > 0xFFFFFFFF - 50:
        raise ValueError("the recording is too long for a WAV file")
    form = struct.pack("<4sIHHIIHHH", b"fmt ", 18, FLOAT, 1, sample_rate, sample_rate * 4, 4, 32, 0)
    fact = struct.pack("<4sII", b"fact", 4, frames)
    return (
        struct.pack("<4sI4s", b"RIFF", 50 + size, b"WAVE") + form + fact + struct.pack("<4sI", b"data", size)
    )
