"""Which grains are chosen: the nearest, never at once again, by chance only among near ones."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from contrafact.v1.grain_pb2 import GrainSettings

from servers.grains.library import Library
from servers.grains.notes import Notes
from servers.grains.selection import Selector
from servers.grains.settings import playing
from tests.grains.sounds import RATE, library_of, notes_of, random_library, random_notes
from tests.grains.textbook import choose

OCTAVE = [110.0, 220.0, 440.0, 880.0]


def of_pitches(*pitches: float) -> Library:
    return library_of([np.ones(600, np.float32)] * len(pitches), pitches)


def chosen(library: Library, notes: Notes, **settings: Any) -> list[int]:
    selector = Selector(library, playing(GrainSettings(**settings)), RATE)
    chances = np.random.default_rng(1).random(len(notes))
    return selector.choose(notes, np.arange(len(notes)), chances).tolist()


def test_the_nearest_in_octaves() -> None:
    notes = notes_of([0, 1, 2, 3, 4], [30.0, 160.0, 150.0, 620.0, 5000.0])
    assert chosen(of_pitches(*OCTAVE), notes) == [0, 1, 0, 2, 3]


def test_octaves_are_not_folded() -> None:
    assert chosen(of_pitches(220.0, 660.0), notes_of([0], [440.0])) == [1]  # not the octave


def test_of_ties_the_first() -> None:
    library = of_pitches(880.0, 220.0, 220.0, 880.0)
    assert chosen(library, notes_of([0], [440.0])) == [0]
    assert chosen(library, notes_of([0], [220.0])) == [1]


def test_not_at_once_again_if_another_is_as_near() -> None:
    library = of_pitches(440.0, 440.0 * 2 ** (1 / 12.01), 440.0 * 2 ** (-1 / 6))
    assert chosen(library, notes_of(range(4), [440.0] * 4)) == [0, 1, 0, 1]
    assert chosen(library, notes_of(range(4), [440.0] * 4), allow_repeats=True) == [0] * 4
    assert chosen(of_pitches(440.0, 440.0 * 2 ** (1 / 11.9)), notes_of(range(3), [440.0] * 3)) == [0] * 3


def test_one_grain_is_always_played() -> None:
    notes = notes_of(range(3), [440.0, 0.0, 100.0])
    assert chosen(of_pitches(200.0), notes) == chosen(of_pitches(0.0), notes) == [0, 0, 0]
    assert chosen(of_pitches(200.0), notes, variation=1, level_weight=2, duration_weight=1) == [0, 0, 0]


def test_without_pitch_the_nearest_in_brightness() -> None:
    sounds = [np.ones(600, np.float32)] * 3
    library = library_of(sounds, [440.0, 0.0, 100.0], brightness=[500.0, 2000.0, 8000.0])
    notes = notes_of([0, 1, 2], [0.0, 0.0, 440.0], brightness=[7000.0, 600.0, 2000.0])
    assert chosen(library, notes) == [2, 0, 0]  # the last has a pitch, and 100 Hz are far
    assert chosen(library, notes, use_pitch_mapping=False) == [2, 0, 1]
    no_pitches = library_of(sounds, [0.0] * 3, brightness=[500.0, 2000.0, 8000.0])
    assert chosen(no_pitches, notes) == [2, 0, 1]


def test_weights() -> None:
    sounds = [np.full(n, level, np.float32) for n, level in ((22_050, 0.4), (2756, 0.4), (22_050, 0.05))]
    library = library_of(sounds, [440.0, 466.0, 494.0], brightness=[4000.0, 4000.0, 1000.0])
    note = notes_of([0], [440.0], frames=2756, rms=0.05, brightness=1000.0)
    assert chosen(library, note) == [0]
    assert chosen(library, note, duration_weight=0.03) == [1]  # three octaves longer, a semitone nearer
    assert chosen(library, note, duration_weight=0.02) == [0]
    assert chosen(library, note, level_weight=0.06) == [2]  # three octaves quieter, two semitones off
    assert chosen(library, note, level_weight=0.05) == [0]
    assert chosen(library, note, brightness_weight=0.09) == [2]
    assert chosen(library, note, brightness_weight=0.08) == [0]


def test_silent_grains_are_left_out_if_others_are_not() -> None:
    heard, silent = np.ones(600, np.float32), np.zeros(600, np.float32)
    notes = notes_of(range(4), [440.0, 440.0, 0.0, 0.0])
    assert chosen(library_of([silent, heard, heard], [440.0, 220.0, 0.0]), notes) == [1, 1, 2, 1]
    assert chosen(library_of([silent, heard], [440.0, 0.0]), notes) == [1, 1, 1, 1]
    assert set(chosen(library_of([silent, heard], [440.0, 440.0]), notes, variation=1.0)) == {1}
    assert chosen(library_of([silent, silent], [440.0, 110.0]), notes.part(0, 1)) == [0]


def test_variation_stays_near_and_uses_all() -> None:
    library = of_pitches(*(440.0 * 2 ** (cents / 1200) for cents in (0, 30, -60, 130, 1200)))
    found = chosen(library, notes_of(range(3000), [440.0] * 3000), variation=0.1, allow_repeats=True)
    counts = np.bincount(found, minlength=5)
    assert counts[3] == counts[4] == 0
    assert (np.abs(counts[:3] - 1000) < 120).all()  # five standard deviations


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_pitch_mapping": False},
        {"variation": 0.3},
        {"allow_repeats": True, "variation": 1},
        {"level_weight": 0.5, "brightness_weight": 0.3, "duration_weight": 0.2},
        {"level_weight": 10, "variation": 0.5},
        {"use_pitch_mapping": False, "level_weight": 1, "duration_weight": 3, "brightness_weight": 1},
    ],
    ids=lambda settings: "-".join(settings) or "default",
)
@pytest.mark.parametrize("grains", [1, 2, 7, 120])
def test_as_one_by_one(settings: dict[str, Any], grains: int) -> None:
    rng = np.random.default_rng(grains)
    library, notes = random_library(rng, grains), random_notes(rng, 150, 2_000_000)
    chances = np.random.default_rng(1).random(len(notes))
    asked, last, wanted = playing(GrainSettings(**settings)), -1, []
    for note in range(len(notes)):
        last = choose(library, notes, note, asked, RATE, last, chances[note])
        wanted.append(last)
    assert chosen(library, notes, **settings) == wanted


def test_what_was_chosen_before_counts_in_the_next_batch() -> None:
    rng = np.random.default_rng(5)
    library, notes = random_library(rng, 50), random_notes(rng, 600, 3_000_000)
    chances = rng.random(600)
    whole, cut = (Selector(library, playing(GrainSettings(variation=0.2)), RATE) for _ in range(2))
    together = whole.choose(notes, np.arange(600), chances).tolist()
    edges = [0, 1, 2, 90, 91, 400, 600]
    apart = [cut.choose(notes, np.arange(a, b), chances[a:b]) for a, b in pairwise(edges)]
    assert together == np.concatenate(apart).tolist()


@pytest.mark.parametrize("settings", [{}, {"variation": 0.1}, {"level_weight": 1.0}, {"use_pitch_mapping": False}])
def test_a_hundred_thousand_grains(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(6)
    library, notes = random_library(rng, 100_000), random_notes(rng, 200, 2_000_000)
    found = chosen(library, notes, allow_repeats=True, **settings)
    asked = playing(GrainSettings(**settings))
    for note in range(0, 200, 5):
        pitched = asked.pitch_mapping and notes.pitches[note] > 0
        columns = [(library.pitches, notes.pitches, pitched), (library.brightness, notes.brightness, not pitched)]
        columns.append((library.rms, notes.rms, asked.level_weight))
        used = (library.pitches > 0) | (not pitched)
        far = sum(w * np.abs(np.log2(np.maximum(own, 1e-6) / wanted[note])) for own, wanted, w in columns if w)
        assert far[found[note]] <= far[used].min() + asked.variation + 1e-5


def test_a_hundred_thousand_grains_of_one_pitch() -> None:
    library = library_of([np.zeros(512, np.float32)] * 100_000, [440.0] * 100_000)
    assert chosen(library, notes_of(range(5), [440.0] * 5)) == [0, 1, 0, 1, 0]
    varied = chosen(library, notes_of(range(50), [440.0] * 50), variation=0.5)
    assert len(set(varied)) > 45
