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
LEVEL = 0.03
"""Share of it by which a level may be off: what is constant in a stem is not part of it, nor is all of a low note."""


def stem_of(sounds: list[Samples], levels: list[float] = LEVELS) -> Samples:
    """Sounds of those peaks where they should be, else silence."""
    stem = np.zeros(FRAMES, np.float32)
    for start, sound, level in zip(STARTS, sounds, levels, strict=True):
        stem[start : start + len(sound)] += sound * (level / np.abs(sound).max())
    return stem


def library_with(sounds: list[Samples], rate: int = RATE) -> Library:
    """Built of sounds with silence between them, and stored."""
    gap = np.zeros(rate // 5, np.float32)
    style = np.concatenate([part for sound in sounds for part in (gap, sound)])
    return decode(encode(build(style[np.newaxis], rate, grain_pb2.Cut(top_db=40), lambda share: None)))


@pytest.fixture(scope="module")
def library() -> Library:
    return library_with([tone(hz, 0.4) for hz in GRAINS_HZ])


@pytest.fixture(scope="module")
def tones() -> Samples:
    return stem_of([tone(hz, 0.35) for hz in PITCHES])


@pytest.fixture(scope="module")
def clicks() -> Samples:
    """Noises of 3 ms."""
    rng = np.random.default_rng(1)
    return stem_of([np.sign(rng.standard_normal(132)).astype(np.float32) for _ in STARTS])


def burst(hz: float, seconds: float) -> Samples:
    """Noise of about that brightness, which begins at once."""
    t = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(int(hz)).uniform(-1, 1, round(2 * hz * seconds) + 1)
    return (noise[(2 * hz * t).astype(np.int64)] * np.exp(-8 * t)).astype(np.float32)


def traced(stem: Samples, step: int = 30_000) -> Notes:
    """Of a stem ``[n]`` or ``[channels, n]``."""
    planes = np.atleast_2d(stem)
    tracing = Tracing(RATE, len(planes), planes.shape[1])
    parts = [tracing.process(planes[:, first : first + step]) for first in range(0, planes.shape[1], step)]
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
        assert np.abs(audio[start - TOLERANCE : start + lasts]).max() == pytest.approx(level, rel=LEVEL)
        silent[start - TOLERANCE : start + lasts] = False
    assert not audio[silent].any()


def test_a_silent_stem_is_silent(library: Library) -> None:
    assert not played(library, traced(np.zeros(FRAMES, np.float32)), spec_of(FRAMES)).any()


def test_as_the_textbook_does_it_all(tones: Samples, library: Library) -> None:
    heard = textbook.trace(tones, RATE)
    notes = traced(tones)
    assert np.abs(np.subtract([each.start for each in heard], notes.starts)).max() <= TOLERANCE
    np.testing.assert_allclose([each.pitch for each in heard], notes.pitches, rtol=0.02)
    np.testing.assert_allclose([each.peak for each in heard], notes.peaks, rtol=LEVEL)
    assert [textbook.nearest(library, each) for each in heard] == NEAREST
    wanted, found = textbook.imitate(tones, RATE, library), played(library, notes, spec_of(FRAMES))[0]
    assert np.abs(wanted).max() > 0.5
    for one, other in zip(heard, notes.starts.tolist(), strict=True):
        np.testing.assert_allclose(found[other : other + 5292], wanted[one.start : one.start + 5292], atol=LEVEL)


@pytest.mark.parametrize(
    ("channels", "seconds", "rate", "off"), [(2, 0.12, RATE, 0.02), (1, 1.0, RATE, 0.02), (2, 1.0, 32_000, 0.03)]
)
def test_tones_as_the_textbook_plays_them(channels: int, seconds: float, rate: int, off: float, tones: Samples) -> None:
    """In stereo, too, with grains that overlap, and of another rate."""
    library = library_with([tone(hz, 1.2, rate) for hz in GRAINS_HZ], rate)
    stem = np.stack([tones, 0.4 * tones])[:channels]  # the louder one is the level
    wanted = textbook.imitate(tones, RATE, library, seconds)
    spec = spec_of(FRAMES, channels=channels, grain_duration_ms=1000 * seconds)
    for found in played(library, traced(stem), spec):
        np.testing.assert_allclose(found, wanted, atol=off * np.abs(wanted).max())


@pytest.mark.parametrize("stem", ["clicks", "bursts"])
def test_noises_as_the_textbook_plays_them(stem: str, library: Library, clicks: Samples) -> None:
    """What has no pitch is played with what is as bright."""
    sound = clicks
    if stem == "bursts":
        library = library_with([burst(hz, 0.3) for hz in (1000, 2000, 4000, 8000)])
        sound = stem_of([burst(hz, 0.2) for hz in (1100, 7500, 2100, 3900, 900, 8200, 4200, 1900, 8000, 2000)])
    notes, heard = traced(sound), textbook.trace(sound, RATE)
    assert not notes.pitches.any()
    chosen = [textbook.nearest(library, each) for each in heard]
    assert len(set(chosen)) == (4 if stem == "bursts" else 1)
    wanted, found = textbook.imitate(sound, RATE, library), played(library, notes, spec_of(FRAMES))[0]
    np.testing.assert_allclose(found, wanted, atol=LEVEL)


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
