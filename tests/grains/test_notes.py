"""What is known of notes, and how it is written."""

from __future__ import annotations

import numpy as np
import pytest
from contrafact.engine.v1 import grains_pb2

from servers.grains.notes import (
    Notes,
    edges_of,
    from_batch,
    join,
    level_edge,
    levels_of,
    magnitudes_of,
    no_notes,
    to_batch,
)

FIELDS = Notes.__slots__


def some_notes(count: int, seed: int = 0) -> Notes:
    random = np.random.default_rng(seed)
    counts = random.integers(1, 9, count)
    values = random.uniform(0, 1000, (4, count)).astype(np.float32)
    levels = random.integers(0, 256, counts.sum()).astype(np.uint8)
    starts, (pitches, peaks, rms, brightness) = np.sort(random.integers(0, 10**12, count)), values
    return Notes(starts, counts * 800, pitches, peaks, rms, brightness, levels, edges_of(counts))


def assert_same(one: Notes, other: Notes) -> None:
    for name in FIELDS:
        left, right = getattr(one, name), getattr(other, name)
        assert left.dtype == right.dtype, name
        assert np.array_equal(left, right), name


@pytest.mark.parametrize("count", [0, 1, 50])
def test_batches_keep_everything(count: int) -> None:
    notes = some_notes(count)
    batch = grains_pb2.NoteBatch.FromString(to_batch(notes, 2**40).SerializeToString())
    assert batch.until == 2**40
    assert_same(from_batch(batch), notes)


def test_parts_are_the_whole() -> None:
    notes = some_notes(20)
    assert_same(join([notes.part(0, 7), no_notes(), notes.part(7, 8), notes.part(8, 20)]), notes)
    assert_same(from_batch(to_batch(notes.part(5, 9), 0)), notes.part(5, 9))
    assert_same(join([]), no_notes())
    assert len(notes.part(4, 4)) == 0


def test_levels_are_what_the_protocol_says() -> None:
    levels = np.arange(1, 256)
    magnitudes = 10 ** ((levels - 200) / 40)
    assert np.array_equal(levels_of(magnitudes.astype(np.float32)), levels)
    assert np.allclose(magnitudes_of(levels.astype(np.uint8)), magnitudes, rtol=1e-6)
    assert levels_of(np.array([0, 1e-6, 1, 1e6], np.float32)).tolist() == [0, 0, 200, 255]
    assert magnitudes_of(np.zeros(1, np.uint8))[0] == 0


def test_levels_are_within_a_quarter_of_a_decibel() -> None:
    magnitudes = np.geomspace(2e-5, 20, 1000).astype(np.float32)
    away = 20 * np.log10(magnitudes_of(levels_of(magnitudes)) / magnitudes)
    assert 0.2 < np.abs(away).max() < 0.2505


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_001])
def test_levels_begin_where_frames_say(rate: int) -> None:
    frames = np.arange(rate)
    assert np.array_equal(np.flatnonzero(np.diff(frames * 50 // rate)) + 1, [level_edge(k, rate) for k in range(1, 50)])
