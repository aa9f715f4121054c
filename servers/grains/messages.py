"""Audio, notes and libraries as the messages that carry them: none is larger than about a megabyte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from contrafact.engine.v1.grains_pb2 import BuildReport, GrainsBlock, LibraryPiece, Note, NoteBatch
from numpy.typing import NDArray

from servers.grains.library import VERSION, Library
from servers.media.blocks import BLOCK_FRAMES

PIECE_BYTES = 1_000_000
BATCH_NOTES = 4096
_FLOAT = np.dtype("<f4")


def audio(start: int, samples: NDArray[np.float32]) -> Iterator[GrainsBlock]:
    """float32 ``[channels, n]``, the first frame of which is at ``start``."""
    for offset in range(0, samples.shape[1], BLOCK_FRAMES):
        part = samples[:, offset : offset + BLOCK_FRAMES].astype(_FLOAT, copy=False)
        yield GrainsBlock(start=start + offset, samples=part.tobytes())


def pieces(data: bytes) -> Iterator[LibraryPiece]:
    """The bytes of a library."""
    for offset in range(0, len(data), PIECE_BYTES):
        yield LibraryPiece(offset=offset, data=data[offset : offset + PIECE_BYTES])


def batches(notes: Sequence[Note], until: int) -> Iterator[NoteBatch]:
    """Notes, before ``until`` and no others, in batches that can be sent: at least one."""
    begin = size = 0
    for place, note in enumerate(notes):
        size += note.ByteSize()
        if place - begin == BATCH_NOTES or (size > PIECE_BYTES and place > begin):
            yield NoteBatch(notes=notes[begin:place], until=min(until, note.start))
            begin, size = place, note.ByteSize()
    yield NoteBatch(notes=notes[begin:], until=until)


def build_report(library: Library) -> BuildReport:
    """What a library holds."""
    pitched = library.pitches[library.pitches > 0]
    return BuildReport(
        grains=len(library.lengths),
        pitched=len(pitched),
        seconds=int(library.lengths.sum()) / library.sample_rate,
        low_hz=float(pitched.min()) if len(pitched) else 0.0,
        high_hz=float(pitched.max()) if len(pitched) else 0.0,
        version=VERSION,
    )
