"""Notes played with grains: as a plain loop does it, whatever the batches; what settings do to the sound."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from contrafact.v1 import grain_pb2

from servers.grains.library import Library
from servers.grains.notes import Notes, no_notes
from servers.grains.rendering import Rendering, UnfitNotes
from servers.grains.settings import completed, playing
from tests.grains.sounds import (
    CLICK,
    RATE,
    library_of,
    notes_of,
    played,
    played_bit_by_bit,
    random_library,
    random_notes,
    spec_of,
    tone,
)
from tests.grains.textbook import play

FRAMES = 10 * RATE
ALL = [
    {},
    {"use_envelope": False, "follow_level": False},
    {"envelope": grain_pb2.ENVELOPE_LINEAR, "grain_duration_ms": 35.5},
    {"envelope": grain_pb2.ENVELOPE_HANN, "spread": 1.0, "seed": 3},
    {"envelope": grain_pb2.ENVELOPE_ADSR, "density": 3.7, "variation": 0.4, "spread": 0.4},
    {"density": 0.4, "use_pitch_mapping": False, "allow_repeats": True, "seed": 4_294_967_295},
    {"density": 16.0, "level_weight": 1.0, "brightness_weight": 0.5, "duration_weight": 0.1, "variation": 0.1},
]
RANDOM = [
    {"variation": 1.0},
    {"spread": 1.0},
    {"density": 0.5},
]


def names(settings: dict[str, Any]) -> str:
    return "-".join(settings) or "default"


@pytest.fixture(scope="module")
def library() -> Library:
    return random_library(np.random.default_rng(1), 60, channels=2)


@pytest.fixture(scope="module")
def notes() -> Notes:
    return random_notes(np.random.default_rng(2), 100, FRAMES)


@pytest.mark.parametrize("settings", ALL, ids=names)
@pytest.mark.parametrize(("own", "channels"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_as_the_textbook_plays(notes: Notes, settings: dict[str, Any], own: int, channels: int) -> None:
    library, notes = random_library(np.random.default_rng(3), 40, channels=own), notes.part(0, 40)
    spec = spec_of(FRAMES, channels=channels, **settings)
    wanted = play(library, notes, playing(spec.settings), RATE, channels, FRAMES)
    found = played(library, notes, spec)
    assert found.shape == (channels, FRAMES)
    assert found.dtype == np.float32
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-6 * max(1, np.abs(wanted).max()), rtol=0)


@pytest.mark.parametrize("settings", [*ALL, {"stretch": 1.7, "shift_pitch": True}], ids=names)
@pytest.mark.parametrize("step", [100, 44_100, 300_000])
def test_batches_change_no_bit(library: Library, notes: Notes, settings: dict[str, Any], step: int) -> None:
    spec = spec_of(FRAMES, channels=2, **settings)
    assert (played(library, notes, spec) == played_bit_by_bit(library, notes, spec, step)).all()


def test_notes_may_come_early(library: Library, notes: Notes) -> None:
    """A batch may have notes that begin after the frame before which all came."""
    spec = spec_of(FRAMES, channels=2, density=4)
    rendering = Rendering(library, spec)
    parts = [rendering.add(notes.part(0, 60), 5), rendering.add(no_notes(), int(notes.starts[59]))]
    parts += [rendering.add(notes.part(60, 100), FRAMES), rendering.finish()]
    assert [part.shape[1] for part in parts] == [5, notes.starts[59] - 5, FRAMES - notes.starts[59], 0]
    assert (np.concatenate(parts, axis=1) == played(library, notes, spec)).all()


@pytest.mark.parametrize("settings", RANDOM, ids=names)
def test_the_seed_decides(library: Library, notes: Notes, settings: dict[str, Any]) -> None:
    once, again, other = (
        played(library, notes, spec_of(FRAMES, channels=2, seed=seed, **settings)) for seed in (1, 1, 2)
    )
    assert once.tobytes() == again.tobytes()
    assert (once != other).any()


def test_without_chance_no_seed_matters(library: Library, notes: Notes) -> None:
    one, other = (played(library, notes, spec_of(FRAMES, seed=seed)) for seed in (1, 2))
    assert one.tobytes() == other.tobytes()


def test_a_grain_is_where_the_note_begins() -> None:
    library = library_of([CLICK], [0.0], onsets=[100])
    audio = played(library, notes_of([0, 5000, 9999], [0.0] * 3, peaks=[0.5, 0.25, 1.0]), spec_of(10_000))
    assert np.flatnonzero(audio[0]).tolist() == [0, 5000, 9999]
    np.testing.assert_allclose(audio[0, [0, 5000, 9999]], [0.5, 0.25, 1.0], rtol=1e-6)


def test_what_is_before_the_onset_is_not_played() -> None:
    loud_before = np.concatenate([np.ones(200), 0.1 * np.ones(600)]).astype(np.float32)
    library = library_of([loud_before], [0.0], onsets=[200])
    audio = played(library, notes_of([10], [0.0], peaks=0.8), spec_of(2000, use_envelope=False))
    assert np.flatnonzero(audio[0]).tolist() == list(range(10, 610))
    assert audio[0, 10] == pytest.approx(0.8)


def test_silence_stays_silence(library: Library) -> None:
    assert not played(library, no_notes(), spec_of(FRAMES, channels=2)).any()
    assert not played(library, notes_of([100], [0.0], peaks=0.0), spec_of(FRAMES)).any()
    audio = played(library, notes_of([RATE, 5 * RATE], [200.0] * 2), spec_of(FRAMES))[0]
    heard = np.flatnonzero(audio)
    lasts = round(0.12 * RATE)
    assert ((heard >= RATE) & (heard < RATE + lasts) | (heard >= 5 * RATE) & (heard < 5 * RATE + lasts)).all()


def test_a_silent_grain_is_not_made_loud() -> None:
    library = library_of([np.full(600, 1e-9, np.float32)], [440.0])
    rendering = Rendering(library, spec_of(1000))
    assert not rendering.add(notes_of([0], [440.0]), 1000).any()
    assert (rendering.report().notes, rendering.report().grains) == (1, 0)


@pytest.mark.parametrize("level", [1e-4, 0.3, 1e6])
@pytest.mark.parametrize("channels", [1, 2])
def test_levels_follow(level: float, channels: int) -> None:
    library = library_of([tone(300, 0.3), 0.01 * tone(600, 0.05)], [300.0, 600.0])
    notes = notes_of([0, RATE], [300.0, 600.0], peaks=[level, level / 2])
    audio = played(library, notes, spec_of(2 * RATE, channels=channels))
    for begin, peak in ((0, level), (RATE, level / 2)):
        assert np.abs(audio[:, begin : begin + RATE]).max(axis=1) == pytest.approx([peak] * channels, rel=1e-5)


def test_levels_of_their_own() -> None:
    library = library_of([tone(300, 0.3)], [300.0])
    audio = played(library, notes_of([0], [300.0], peaks=0.01), spec_of(RATE, follow_level=False, use_envelope=False))
    np.testing.assert_array_equal(audio[0, :5000], library.audio[0, :5000])


def test_less_density_leaves_notes_out() -> None:
    library = library_of([CLICK], [0.0], onsets=[100])
    notes = notes_of(range(0, 2_000_000, 1000), [0.0] * 2000, frames=1000)
    for density in (0.05, 0.5, 0.9):
        rendering = Rendering(library, spec_of(2_000_000, density=density, seed=7))
        rendering.add(notes, 2_000_000)
        assert abs(rendering.report().grains - 2000 * density) < 90  # four standard deviations
        assert rendering.report().notes == 2000


@pytest.mark.parametrize("density", [0.3, 1.0, 1.05, 2.5, 7.9, 16.0])
def test_notes_have_as_many_grains_as_the_density_in_the_mean(density: float) -> None:
    library = library_of([CLICK], [0.0], onsets=[100])
    notes = notes_of(range(0, 20_000_000, 10_000), [0.0] * 2000, frames=9000)
    found = np.flatnonzero(played(library, notes, spec_of(20_000_000, density=density, seed=7))[0])
    counts = np.bincount(found // 10_000, minlength=2000)
    assert set(counts.tolist()) <= {math.floor(density), math.ceil(density)}
    assert counts.mean() == pytest.approx(density, abs=4 * 0.5 / math.sqrt(2000))  # four standard deviations at most
    later = np.flatnonzero(np.diff(found // 10_000) == 0)
    evenly = 9000 / counts[found[later] // 10_000]
    assert (np.abs(np.diff(found)[later] - evenly) <= 1).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"density": 16},
        {"density": 16, "use_envelope": False},
        {"density": 16, "use_envelope": False, "grain_duration_ms": 2000},
        {"density": 4, "envelope": grain_pb2.ENVELOPE_HANN, "grain_duration_ms": 500},
        {"density": 4, "envelope": grain_pb2.ENVELOPE_ADSR, "grain_duration_ms": 1000},
    ],
    ids=names,
)
@pytest.mark.parametrize("seconds", [0.2, 0.7])
def test_grains_that_overlap_are_as_loud_as_the_note_together(settings: dict[str, Any], seconds: float) -> None:
    rng = np.random.default_rng(8)
    steady = [0.1 * rng.standard_normal(3 * RATE).astype(np.float32) for _ in range(8)]
    library = library_of(steady, [300.0] * 8)
    spec = spec_of(4 * RATE, variation=0.1, **settings)
    audio = played(library, notes_of([0], [300.0], frames=round(seconds * RATE), peaks=0.4), spec)
    assert abs(20 * np.log10(np.abs(audio).max() / 0.4)) < 3


def test_grains_that_do_not_overlap_are_as_loud_as_without_others() -> None:
    library = library_of([tone(300, 0.3)], [300.0])
    notes = notes_of([0], [300.0], frames=RATE)
    audio = played(library, notes, spec_of(RATE, density=4))[0]
    alone = played(library, notes, spec_of(RATE))[0]
    for begin in range(0, RATE, RATE // 4):
        np.testing.assert_array_equal(audio[begin : begin + RATE // 4], alone[: RATE // 4])


@pytest.mark.parametrize("envelope", ["HANN", "ADSR"])
def test_noise_after_an_attack_is_not_made_loud(envelope: str) -> None:
    """The attack, where these envelopes begin, is all that is loud."""
    rng = np.random.default_rng(9)
    hit = 1e-4 * rng.uniform(-1, 1, 8000).astype(np.float32)
    hit[:20] = 0.5
    spec = spec_of(RATE, envelope=f"ENVELOPE_{envelope}")
    audio = played(library_of([hit], [0.0]), notes_of([0], [0.0], peaks=0.8), spec)[0]
    assert np.abs(audio[100:]).max() < 0.01
    assert np.abs(audio).max() <= 0.8 * (1 + 1e-6)
    slower = tone(300, 0.1)
    audio = played(library_of([slower], [300.0]), notes_of([0], [300.0], peaks=0.8), spec)[0]
    assert np.abs(audio).max() == pytest.approx(0.8, rel=1e-5)


def test_a_faint_grain_is_raised_by_80_db_at_most() -> None:
    library = library_of([np.full(600, level, np.float32) for level in (1e-4, 1e-5)], [300.0, 3000.0])
    audio = played(library, notes_of([0, 5000], [300.0, 3000.0], peaks=1.0), spec_of(9000))[0]
    assert np.abs(audio[:5000]).max() == pytest.approx(1.0, rel=1e-5)
    assert np.abs(audio[5000:]).max() == pytest.approx(0.1, rel=1e-5)


def test_silence_after_long_grains_costs_no_tail(library: Library) -> None:
    """What is carried on is what sounds on, though grains may last ten seconds."""
    notes = notes_of([0], [300.0])
    spec = spec_of(FRAMES, channels=2, grain_duration_ms=10_000)
    rendering = Rendering(library, spec)
    parts = [rendering.add(notes, 100)]
    assert 0 < rendering._tail.shape[1] < 9000
    parts.append(rendering.add(no_notes(), 10_000))
    assert rendering._tail.shape[1] == 0
    parts.append(rendering.finish())
    assert (np.concatenate(parts, axis=1) == played(library, notes, spec)).all()


def test_more_density_goes_on_through_the_note() -> None:
    library = library_of([CLICK], [0.0], onsets=[100])
    levels = [[0.5] * 25 + [0.1] * 12 + [0.0] * 13]
    notes = notes_of([1000], [0.0], frames=RATE, levels=levels)
    audio = played(library, notes, spec_of(2 * RATE, density=4))[0]
    places = [1000 + place * RATE // 4 for place in range(3)]  # the fourth is silent
    assert np.flatnonzero(audio).tolist() == places
    np.testing.assert_allclose(20 * np.log10(audio[places]), 20 * np.log10([0.5, 0.5, 0.1]), atol=0.26)  # half a step


@pytest.mark.parametrize(("frames", "grains"), [(1, 1), (441, 1), (442, 2), (4410, 10), (7056, 16), (70_560, 16)])
def test_grains_are_ten_milliseconds_apart_and_end_with_the_note(frames: int, grains: int) -> None:
    library = library_of([CLICK], [0.0], onsets=[100])
    audio = played(library, notes_of([50], [0.0], frames=frames), spec_of(2 * RATE, density=16))[0]
    found = np.flatnonzero(audio)
    assert len(found) == grains
    assert found[0] == 50
    assert found[-1] < 50 + frames
    assert (np.diff(found) >= 441).all()


def test_what_is_beyond_the_end_is_cut() -> None:
    library = library_of([np.ones(5000, np.float32)], [0.0])
    notes = notes_of([9000, 10_000, 12_000], [0.0] * 3, frames=10**12)
    audio = played(library, notes, spec_of(10_000, density=2))
    assert audio.shape == (1, 10_000)
    assert np.flatnonzero(audio[0]).tolist() == list(range(9000, 10_000))


@pytest.mark.parametrize("grains", [1, 100_000])
@pytest.mark.parametrize("settings", [{}, {"stretch": 4.0, "shift_pitch": True, "density": 16, "variation": 1.0}])
def test_few_and_many_grains_are_finite(grains: int, settings: dict[str, Any]) -> None:
    library = random_library(np.random.default_rng(4), grains)
    notes = random_notes(np.random.default_rng(5), 30, FRAMES)
    audio = played(library, notes, spec_of(FRAMES, channels=2, **settings))
    assert np.isfinite(audio).all()
    assert audio.any()


def test_no_grain_has_a_pitch(notes: Notes) -> None:
    library = library_of([tone(300, 0.1), tone(3000, 0.1)], [0.0, 0.0], brightness=[400.0, 4000.0])
    audio = played(library, notes, spec_of(FRAMES, shift_pitch=True))
    assert np.isfinite(audio).all()
    assert audio.any()


def test_report(library: Library, notes: Notes) -> None:
    rendering = Rendering(library, spec_of(FRAMES, density=2))
    rendering.add(notes, FRAMES)
    report = rendering.report()
    assert report.notes == 100
    assert 100 < report.grains <= 200
    assert 1 < report.different_grains <= 60


def test_notes_out_of_order(library: Library) -> None:
    rendering = Rendering(library, spec_of(FRAMES))
    rendering.add(notes_of([10, 500], [0.0, 0.0]), 600)
    for wrong, until in ((notes_of([599], [0.0]), 700), (notes_of([700, 650], [0.0] * 2), 800), (no_notes(), 500)):
        with pytest.raises(UnfitNotes):
            rendering.add(wrong, until)
    assert rendering.add(no_notes(), 1000).shape == (1, 400)


def test_settings_are_completed() -> None:
    complete = completed(grain_pb2.GrainSettings(use_envelope=False, density=0.5, seed=3))
    assert complete == grain_pb2.GrainSettings(
        grain_duration_ms=120,
        use_pitch_mapping=True,
        use_envelope=False,
        envelope=grain_pb2.ENVELOPE_EXPONENTIAL,
        follow_level=True,
        density=0.5,
        stretch=1,
        seed=3,
    )
    assert completed(complete) == complete
    assert playing(complete) == playing(grain_pb2.GrainSettings(use_envelope=False, density=0.5, seed=3))
