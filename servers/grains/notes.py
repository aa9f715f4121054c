"""What is played in a stem, note by note."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from contrafact.engine.v1 import grains_pb2
from numpy.typing import NDArray

Samples = NDArray[np.float32]
Positions = NDArray[np.int64]

LEVELS_PER_SECOND = 50
_SILENCE, _LOUDEST = 0, 255
_FULL_SCALE = 200  # the level of a magnitude of 1
_PER_DECADE = 40


@dataclass(frozen=True, slots=True, eq=False)
class Notes:
    """Notes in order. Arrays are as long as there are notes, but for the last two.

    Attributes:
        starts: first frame of each, ascending.
        frames: how many frames each sounds, at least 1.
        pitches: in Hz; 0: none.
        peaks: largest magnitude of the first 120 ms.
        rms: root mean square of the same.
        brightness: spectral centroid of the same, in Hz.
        levels: uint8, of all notes one after the other: the largest magnitude of each 20 ms of a note, from its first
            frame on, as ``levels_of`` has it. Frame ``f`` of a note is in level ``f * 50 // sample_rate``.
        level_edges: ``[notes + 1]``: note ``i`` has levels ``level_edges[i]`` to ``level_edges[i + 1]``.
    """

    starts: Positions
    frames: Positions
    pitches: Samples
    peaks: Samples
    rms: Samples
    brightness: Samples
    levels: NDArray[np.uint8]
    level_edges: Positions

    def __len__(self) -> int:
        return len(self.starts)

    def part(self, begin: int, end: int) -> Notes:
        """Notes ``begin`` to ``end``."""
        which = slice(begin, end)
        edges = self.level_edges[begin : max(begin, end) + 1]
        return Notes(
            self.starts[which],
            self.frames[which],
            self.pitches[which],
            self.peaks[which],
            self.rms[which],
            self.brightness[which],
            self.levels[edges[0] : edges[-1]],
            edges - edges[0],
        )


def edges_of(counts: Iterable[int]) -> Positions:
    """Where each of some ragged rows begins in all of them, and where the last ends: int64 ``[n + 1]``."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.fromiter(counts, np.int64))])


def no_notes() -> Notes:
    """Nothing."""
    return from_messages([])


def join(parts: Sequence[Notes]) -> Notes:
    """Notes one after the other."""
    if not parts:
        return no_notes()
    counts = np.concatenate([np.diff(part.level_edges) for part in parts])
    return Notes(
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.frames for part in parts]),
        np.concatenate([part.pitches for part in parts]),
        np.concatenate([part.peaks for part in parts]),
        np.concatenate([part.rms for part in parts]),
        np.concatenate([part.brightness for part in parts]),
        np.concatenate([part.levels for part in parts]),
        edges_of(counts),
    )


def levels_of(magnitudes: Samples) -> NDArray[np.uint8]:
    """Magnitudes as bytes, of half a dB: ``b`` is ``10 ** ((b - 200) / 40)``, 0 is what is below -99.75 dBFS."""
    with np.errstate(divide="ignore"):
        levels = np.rint(_FULL_SCALE + _PER_DECADE * np.log10(np.abs(magnitudes)))
    as_bytes: NDArray[np.uint8] = np.clip(levels, _SILENCE, _LOUDEST).astype(np.uint8)
    return as_bytes


def magnitudes_of(levels: NDArray[np.uint8]) -> Samples:
    """The opposite of ``levels_of``."""
    magnitudes: Samples = _MAGNITUDES[levels]
    return magnitudes


def level_edge(level: int, sample_rate: int) -> int:
    """First frame of a level, counted from the first frame of its note."""
    return -(-level * sample_rate // LEVELS_PER_SECOND)


def to_messages(notes: Notes) -> list[grains_pb2.Note]:
    """As they are sent and stored."""
    levels, edges = notes.levels.tobytes(), notes.level_edges.tolist()
    columns = (notes.starts, notes.frames, notes.pitches, notes.peaks, notes.rms, notes.brightness)
    rows = zip(*(column.tolist() for column in columns), edges[:-1], edges[1:], strict=True)
    return [
        grains_pb2.Note(
            start=start,
            frames=frames,
            pitch_hz=pitch,
            peak=peak,
            rms=rms,
            brightness_hz=brightness,
            levels=levels[begin:end],
        )
        for start, frames, pitch, peak, rms, brightness, begin, end in rows
    ]


def from_messages(messages: Sequence[grains_pb2.Note]) -> Notes:
    """The opposite of ``to_messages``."""
    return Notes(
        np.array([note.start for note in messages], np.int64),
        np.array([note.frames for note in messages], np.int64),
        np.array([note.pitch_hz for note in messages], np.float32),
        np.array([note.peak for note in messages], np.float32),
        np.array([note.rms for note in messages], np.float32),
        np.array([note.brightness_hz for note in messages], np.float32),
        np.frombuffer(b"".join(note.levels for note in messages), np.uint8),
        edges_of(len(note.levels) for note in messages),
    )


def to_batch(notes: Notes, until: int) -> grains_pb2.NoteBatch:
    """Notes, at most 4,096, and before which frame all notes that begin have been sent."""
    return grains_pb2.NoteBatch(notes=to_messages(notes), until=until)


def from_batch(batch: grains_pb2.NoteBatch) -> Notes:
    """The notes of a batch."""
    return from_messages(batch.notes)


_MAGNITUDES = (10.0 ** ((np.arange(_LOUDEST + 1) - _FULL_SCALE) / _PER_DECADE)).astype(np.float32)
_MAGNITUDES[_SILENCE] = 0.0
