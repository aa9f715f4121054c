"""Libraries, notes and sounds that are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from contrafact.engine.v1 import grains_pb2
from contrafact.v1 import grain_pb2
from numpy.typing import NDArray

from servers.grains.library import Library
from servers.grains.notes import Notes, levels_of
from servers.grains.rendering import Rendering

Samples = NDArray[np.float32]

RATE = 44_100
CLICK = np.zeros(701, np.float32)
"""A single sample, after 100 silent ones."""
CLICK[100] = 1.0


def tone(hz: float, seconds: float, rate: int = RATE, partials: int = 4) -> Samples:
    """``[n]``: a tone that begins at once and fades evenly; its loudest sample is 0.5."""
    t = np.arange(round(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * hz * k * t + 1) / k for k in range(1, partials + 1)) * (1 - t / seconds)
    return (0.5 * wave / np.abs(wave).max()).astype(np.float32)


def library_of(
    sounds: Sequence[Samples],
    pitches: Sequence[float],
    *,
    rate: int = RATE,
    onsets: Sequence[int] | None = None,
    brightness: Sequence[float] | None = None,
) -> Library:
    """Grains of which the pitches are told, ``[n]`` or ``[2, n]`` each."""
    planes = [np.atleast_2d(sound).astype(np.float32) for sound in sounds]
    lengths = np.array([plane.shape[1] for plane in planes], np.int64)
    begins = np.zeros(len(planes), np.int64) if onsets is None else np.array(onsets, np.int64)
    offsets = np.cumsum(lengths) - lengths
    return Library(
        sample_rate=rate,
        channels=len(planes[0]),
        audio=np.concatenate(planes, axis=1),
        offsets=offsets,
        lengths=lengths,
        starts=offsets / rate,
        pitches=np.array(pitches, np.float32),
        rms=np.array([np.sqrt(np.square(plane).mean()) for plane in planes], np.float32),
        peaks=np.array([np.abs(plane).max() for plane in planes], np.float32),
        brightness=np.array([1000.0] * len(planes) if brightness is None else brightness, np.float32),
        attacks=np.zeros(len(planes), np.int64),
        onsets=begins,
    )


def random_library(rng: np.random.Generator, grains: int, *, channels: int = 1, rate: int = RATE) -> Library:
    """Short noises; what is said of them is made up: a fifth have no pitch, their onsets are within."""
    lengths = rng.integers(512, 9000, grains) if grains < 5000 else np.full(grains, 512)
    offsets = np.cumsum(lengths) - lengths
    return Library(
        sample_rate=rate,
        channels=channels,
        audio=0.1 * rng.standard_normal((channels, int(lengths.sum())), dtype=np.float32),
        offsets=offsets,
        lengths=lengths,
        starts=offsets / rate,
        pitches=np.where(rng.random(grains) < 0.2, 0.0, 40 * 2 ** rng.uniform(0, 5.5, grains)).astype(np.float32),
        rms=rng.uniform(0.001, 0.3, grains).astype(np.float32),
        peaks=np.full(grains, 0.5, np.float32),
        brightness=(200 * 2 ** rng.uniform(0, 6, grains)).astype(np.float32),
        attacks=np.zeros(grains, np.int64),
        onsets=rng.integers(0, 400, grains),
    )


def notes_of(
    starts: Sequence[int],
    pitches: Sequence[float],
    *,
    frames: Sequence[int] | int = RATE // 2,
    peaks: Sequence[float] | float = 0.5,
    rms: Sequence[float] | float = 0.1,
    brightness: Sequence[float] | float = 1000.0,
    levels: Sequence[Sequence[float]] | None = None,
) -> Notes:
    """Notes that are told; without levels, each has none."""
    count = len(starts)
    ragged = [levels_of(np.array(each, np.float32)) for each in levels or [[]] * count]
    return Notes(
        starts=np.array(starts, np.int64),
        frames=np.broadcast_to(np.array(frames, np.int64), count).copy(),
        pitches=np.array(pitches, np.float32),
        peaks=np.broadcast_to(np.array(peaks, np.float32), count).copy(),
        rms=np.broadcast_to(np.array(rms, np.float32), count).copy(),
        brightness=np.broadcast_to(np.array(brightness, np.float32), count).copy(),
        levels=np.concatenate([np.zeros(0, np.uint8), *ragged]),
        level_edges=np.cumsum([0, *map(len, ragged)]).astype(np.int64),
    )


def random_notes(rng: np.random.Generator, count: int, frames: int) -> Notes:
    """Notes through so many frames, a quarter without pitch, each until the next."""
    starts = np.sort(rng.choice(frames, count, replace=False))
    lengths = np.diff(starts, append=frames)
    return notes_of(
        starts.tolist(),
        np.where(rng.random(count) < 0.25, 0.0, 30 * 2 ** rng.uniform(0, 6, count)).tolist(),
        frames=lengths.tolist(),
        peaks=rng.uniform(0.01, 0.9, count).tolist(),
        rms=rng.uniform(0.001, 0.2, count).tolist(),
        brightness=(100 * 2 ** rng.uniform(0, 7, count)).tolist(),
        levels=[rng.uniform(0.0, 0.9, -(-int(length) * 50 // RATE)).tolist() for length in lengths],
    )


def spec_of(frames: int, *, rate: int = RATE, channels: int = 1, **settings: Any) -> grains_pb2.RenderSpec:
    """What to play; the rest are GrainSettings."""
    return grains_pb2.RenderSpec(
        sample_rate=rate,
        channels=channels,
        frames=frames,
        settings=grain_pb2.GrainSettings(**settings),
    )


def played(library: Library, notes: Notes, spec: grains_pb2.RenderSpec) -> Samples:
    """All audio of some notes, given at once."""
    rendering = Rendering(library, spec)
    return np.concatenate([rendering.add(notes, spec.frames), rendering.finish()], axis=1)


def played_bit_by_bit(library: Library, notes: Notes, spec: grains_pb2.RenderSpec, step: int) -> Samples:
    """The same, so many frames at a time."""
    rendering, parts, begin = Rendering(library, spec), [], 0
    for until in range(step, spec.frames, step):
        end = int(np.searchsorted(notes.starts, until))
        parts.append(rendering.add(notes.part(begin, end), until))
        begin = end
    parts.append(rendering.add(notes.part(begin, len(notes)), spec.frames))
    return np.concatenate([*parts, rendering.finish()], axis=1)
