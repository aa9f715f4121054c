"""How long notes sound."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from servers.grains.sounding import MAX_LEVELS, Sounded, Sounding

RATE = 8000
Samples = NDArray[np.float32]


def sounded(samples: Samples, onsets: list[int], step: int = RATE // 2) -> list[Sounded]:
    """All notes, ``step`` frames at a time; only what is said to be needed is given."""
    sounding, notes, end = Sounding(RATE), [], 0
    while end < len(samples):
        first, end = max(0, end - RATE // 10), min(end + step, len(samples))
        part = samples[first:end]
        while onsets and onsets[0] < end:
            notes += sounding.go_on(part, first, onsets[0], ends=True)
            onsets = onsets[1:]
        notes += sounding.go_on(part, first, end, ends=end == len(samples))
        assert sounding.begin <= end
        assert sounding.sounds or sounding.begin > end - 0.1 * RATE
    for note in notes:
        assert len(note.magnitudes) == (note.frames - 1) * 50 // RATE + 1
    return notes


def spans(notes: list[Sounded]) -> list[tuple[int, int]]:
    return [(note.start, note.frames) for note in notes]


def test_a_note_lasts_until_the_next() -> None:
    samples = np.full(2 * RATE, 0.5, np.float32)
    assert spans(sounded(samples, [0, 5000, 5900])) == [(0, 5000), (5000, 900), (5900, 10_100)]


@pytest.mark.parametrize(("left", "ends"), [(0, True), (0.004, True), (0.006, False)])
def test_a_note_ends_with_its_last_sample_within_40_db(left: float, ends: bool) -> None:
    samples = np.where(np.arange(RATE) < 1000, 0, left).astype(np.float32)
    samples[1000:2345] = 0.5
    assert spans(sounded(samples, [1000])) == [(1000, 1345 if ends else 7000)]


def test_a_short_rest_does_not_end_a_note() -> None:
    samples = np.zeros(RATE, np.float32)
    samples[0:2000] = samples[2400:4000] = 0.5  # 50 ms
    samples[4640:5000] = 0.5  # 80 ms
    assert spans(sounded(samples, [0])) == [(0, 4000), (4640, 360)]


def test_what_swells_is_a_note_though_nobody_calls_it() -> None:
    time = np.arange(10 * RATE) / RATE
    swell = (1e-5 * 10 ** (time / 2.5)).astype(np.float32)  # 8 dB a second, from -100 dBFS
    (note,) = sounded(swell, [])
    assert abs(20 * np.log10(swell[note.start]) + 70) < 0.1
    assert note.start + note.frames == len(swell)


def test_what_is_left_of_a_note_is_none() -> None:
    """After it, only what rises by 12 dB."""
    time = np.arange(4 * RATE) / RATE
    samples = np.maximum(0.5 * np.exp(-time / 0.1), 0.001).astype(np.float32)
    samples[3 * RATE :] = 0.0038
    assert len(sounded(samples, [0])) == 1
    samples[3 * RATE :] = 0.0041
    assert spans(sounded(samples, [0]))[1] == (3 * RATE, RATE)


def test_levels_are_the_largest_of_each_20_ms() -> None:
    random = np.random.default_rng(0)
    samples = random.uniform(0.2, 0.5, RATE).astype(np.float32)
    (note,) = sounded(samples, [37])[-1:]
    expected = [samples[begin : begin + 160].max() for begin in range(37, RATE, 160)]
    assert np.array_equal(note.magnitudes, np.array(expected, np.float32))


def test_it_does_not_depend_on_the_steps() -> None:
    random = np.random.default_rng(1)
    samples = (random.uniform(0, 1, 40 * RATE) * np.repeat(10 ** -random.uniform(0, 5, 400), RATE // 10)).astype("f4")
    onsets = np.sort(random.choice(40 * RATE, 60, replace=False)).tolist()
    one, other = sounded(samples, onsets, step=len(samples)), sounded(samples, onsets, step=1760)
    assert spans(one) == spans(other)
    assert all(np.array_equal(a.magnitudes, b.magnitudes) for a, b in zip(one, other, strict=True))


def test_a_note_without_end_is_cut() -> None:
    seconds = MAX_LEVELS // 50
    samples = np.full((2 * seconds + 10) * RATE, 0.5, np.float32)
    found = spans(sounded(samples, [100], step=60 * RATE))
    assert [frames for _, frames in found[:2]] == [seconds * RATE] * 2
    assert sum(frames for _, frames in found) == len(samples) - 100
