"""Stems that are known, from their samples to what is played: where, what and how loud, and as the textbook has it."""

from __future__ import annotations

import numpy as np
import pytest
from contrafact.v1 import grain_pb2

from servers.grains.building import build
from servers.grains.library import Library, decode, encode
from servers.grains.notes import Notes, join
from servers.grains.rendering import Rendering
from servers.grains.trace import Tracing
from tests.grains import textbook
from tests.grains.sounds import RATE, Samples, played, played_bit_by_bit, spec_of, tone

GRAINS_HZ = [70.0, 98.0, 131.0, 175.0, 233.0, 311.0, 415.0, 554.0, 740.0, 988.0]
STARTS = [4410, 26_001, 51_777, 77_000, 99_999, 131_072, 150_001, 176_543, 199_000, 222_222]
PITCHES = [72.0, 300.0, 128.0, 960.0, 420.0, 101.0, 230.0, 700.0, 178.0, 565.0]
NEAREST = [0, 5, 2, 9, 6, 1, 4, 8, 3, 7]
LEVELS = [0.5, 0.03, 0.25, 0.9, 0.1, 0.7, 0.05, 0.4, 0.6, 0.2]
FRAMES = 6 * RATE
TOLERANCE = 0
"""Frames by which an onset of a sound that begins at once may be off."""


def stem_of(sounds: list[Samples], levels: list[float] = LEVELS) -> Samples:
    """Sounds of those peaks where they should be, else silence."""
    stem = np.zeros(FRAMES, np.float32)
    for start, sound, level in zip(STARTS, sounds, levels, strict=True):
        stem[start : start + len(sound)] += sound * (level / np.abs(sound).max())
    return stem


@pytest.fixture(scope="module")
def library() -> Library:
    """Built of tones with silence between them, and stored."""
    gap = np.zeros(RATE // 5, np.float32)
    style = np.concatenate([part for hz in GRAINS_HZ for part in (gap, tone(hz, 0.4))])
    return decode(encode(build(style[np.newaxis], RATE, grain_pb2.Cut(top_db=40), lambda share: None)))


@pytest.fixture(scope="module")
def tones() -> Samples:
    return stem_of([tone(hz, 0.35) for hz in PITCHES])


@pytest.fixture(scope="module")
def clicks() -> Samples:
    """Noises of 3 ms."""
    rng = np.random.default_rng(1)
    return stem_of([np.sign(rng.standard_normal(132)).astype(np.float32) for _ in STARTS])


def traced(stem: Samples, step: int = 30_000) -> Notes:
    tracing = Tracing(RATE, 1, len(stem))
    parts = [tracing.process(stem[np.newaxis, first : first + step]) for first in range(0, len(stem), step)]
    return join([*parts, tracing.finish()])


def starts_of(audio: Samples) -> list[int]:
    """First frames of what sounds after at least 500 silent ones."""
    heard = np.flatnonzero(audio)
    return heard[np.diff(heard, prepend=-501) > 500].tolist()


def test_the_library_is_what_it_should_be(library: Library) -> None:
    np.testing.assert_allclose(library.pitches, GRAINS_HZ, rtol=0.003)


@pytest.mark.parametrize("stem", ["tones", "clicks"])
def test_grains_land_at_the_onsets(stem: str, library: Library, request: pytest.FixtureRequest) -> None:
    audio = played(library, traced(request.getfixturevalue(stem)), spec_of(FRAMES))[0]
    found = starts_of(audio)
    assert len(found) == len(STARTS)
    assert np.abs(np.subtract(found, STARTS)).max() <= TOLERANCE


def test_the_nearest_pitches_are_chosen(tones: Samples, library: Library) -> None:
    notes = traced(tones)
    np.testing.assert_allclose(notes.pitches, PITCHES, rtol=0.01)
    audio = played(library, notes, spec_of(FRAMES, use_envelope=False, follow_level=False))[0]
    for start, grain in zip(notes.starts.tolist(), NEAREST, strict=True):
        begin = int(library.offsets[grain] + library.onsets[grain])
        np.testing.assert_array_equal(audio[start : start + 5000], library.audio[0, begin : begin + 5000])


def test_shifted_grains_have_the_pitches_of_the_stem(tones: Samples, library: Library) -> None:
    audio = played(library, traced(tones), spec_of(FRAMES, shift_pitch=True, use_envelope=False))[0]
    np.testing.assert_allclose(traced(audio).pitches, PITCHES, rtol=0.01)


@pytest.mark.parametrize("stem", ["tones", "clicks"])
def test_levels_follow_and_silence_stays_silence(stem: str, library: Library, request: pytest.FixtureRequest) -> None:
    audio = played(library, traced(request.getfixturevalue(stem)), spec_of(FRAMES))[0]
    lasts = round(0.12 * RATE) + TOLERANCE
    silent = np.ones(FRAMES, np.bool_)
    for start, level in zip(STARTS, LEVELS, strict=True):
        assert np.abs(audio[start - TOLERANCE : start + lasts]).max() == pytest.approx(level, rel=1e-3)
        silent[start - TOLERANCE : start + lasts] = False
    assert not audio[silent].any()


def test_a_silent_stem_is_silent(library: Library) -> None:
    assert not played(library, traced(np.zeros(FRAMES, np.float32)), spec_of(FRAMES)).any()


def test_as_the_textbook_does_it_all(tones: Samples, library: Library) -> None:
    heard = textbook.trace(tones, RATE)
    notes = traced(tones)
    assert np.abs(np.subtract([each.start for each in heard], notes.starts)).max() <= TOLERANCE
    np.testing.assert_allclose([each.pitch for each in heard], notes.pitches, rtol=0.02)
    np.testing.assert_allclose([each.peak for each in heard], notes.peaks, rtol=0.001)
    assert [textbook.nearest(library, each.pitch) for each in heard] == NEAREST
    wanted, found = textbook.imitate(tones, RATE, library), played(library, notes, spec_of(FRAMES))[0]
    for one, other in zip(heard, notes.starts.tolist(), strict=True):
        np.testing.assert_allclose(found[other : other + 5292], wanted[one.start : one.start + 5292], atol=1e-3)


def test_no_cut_of_the_stem_or_the_notes_changes_a_bit(tones: Samples, library: Library) -> None:
    spec = spec_of(FRAMES, channels=2, density=3, variation=0.5, spread=1, stretch=1.5, shift_pitch=True)
    whole = played(library, traced(tones), spec)
    assert (played_bit_by_bit(library, traced(tones, 777), spec, 12_345) == whole).all()


def test_followed_while_it_streams(tones: Samples, library: Library) -> None:
    """Notes go from the trace to the rendering as they are known."""
    tracing, rendering, parts = Tracing(RATE, 1, FRAMES), Rendering(library, spec_of(FRAMES)), []
    for first in range(0, FRAMES, 10_000):
        notes = tracing.process(tones[np.newaxis, first : first + 10_000])
        parts.append(rendering.add(notes, tracing.until))
        assert tracing.until > first + 10_000 - 4 * RATE
    parts += [rendering.add(tracing.finish(), tracing.until), rendering.finish()]
    assert (np.concatenate(parts, axis=1) == played(library, traced(tones), spec_of(FRAMES))).all()
