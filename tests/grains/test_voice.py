"""What a grain sounds like: shifted, stretched, resampled, in stereo; measured in its spectrum."""

from __future__ import annotations

import numpy as np
import pytest
from contrafact.v1 import grain_pb2

from servers.grains.settings import playing
from servers.grains.voice import Voices, cents_between
from tests.grains.sounds import CLICK, RATE, Samples, library_of, notes_of, played, random_library, spec_of, tone


def test_spread_keeps_the_power() -> None:
    library = library_of([CLICK], [0.0], onsets=[100])
    count = 1000
    notes = notes_of(range(0, count * 1000, 1000), [0.0] * count, frames=1000)
    for spread in (0.0, 0.3, 1.0):
        audio = played(library, notes, spec_of(count * 1000, channels=2, spread=spread))[:, ::1000].astype(np.float64)
        np.testing.assert_allclose(np.square(audio).sum(axis=0), 2 * 0.5**2, rtol=1e-5)
        places = np.arctan2(audio[1], audio[0]) / (np.pi / 4) - 1
        assert np.abs(places).max() <= spread + 1e-6
        assert places.std() == pytest.approx(spread / np.sqrt(3), rel=0.1, abs=1e-6)  # all places as likely


def test_stereo_stays_stereo_and_mono_has_the_average() -> None:
    left, right = tone(300, 0.2), 0.5 * tone(450, 0.2)
    library = library_of([np.stack([left, right])], [300.0])
    settings = {"follow_level": False, "use_envelope": False}
    stereo = played(library, notes_of([0], [300.0]), spec_of(RATE, channels=2, **settings))
    np.testing.assert_allclose(stereo[:, :5000], np.stack([left, right])[:, :5000], atol=1e-6)
    mono = played(library, notes_of([0], [300.0]), spec_of(RATE, **settings))
    np.testing.assert_allclose(mono[0, :5000], (left + right)[:5000] / 2, atol=1e-6)


def strongest_hz(sound: Samples, rate: int = RATE) -> float:
    """Of one tone: the maximum of a finely divided spectrum."""
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 1 << 19))
    return float(spectrum.argmax() * rate / (1 << 19))


@pytest.mark.parametrize("rate", [44_100, 32_000])
@pytest.mark.parametrize(("own", "wanted"), [(220.0, 311.1), (440.0, 123.5), (500.0, 2000.0), (500.0, 125.0)])
def test_shift_is_to_the_pitch(rate: int, own: float, wanted: float) -> None:
    library = library_of([tone(own, 3.0, partials=1)], [own])
    notes = notes_of([0], [wanted])
    settings = {"grain_duration_ms": 500, "use_envelope": False}
    shifted = played(library, notes, spec_of(rate, rate=rate, shift_pitch=True, **settings))[0]
    assert strongest_hz(shifted[: rate // 2], rate) == pytest.approx(wanted, rel=0.001)
    assert np.abs(shifted[round(0.499 * rate) : round(0.5 * rate)]).max() > 0.01
    assert not shifted[rate // 2 :].any()
    as_it_is = played(library, notes, spec_of(rate, rate=rate, **settings))[0]
    assert strongest_hz(as_it_is[: rate // 2], rate) == pytest.approx(own, rel=0.001)


def test_shift_is_at_most_two_octaves() -> None:
    assert cents_between(100, 900) == 2400
    assert cents_between(900, 100) == -2400
    assert cents_between(440, 440 * 2 ** (1 / 12)) == 100
    assert cents_between(0, 440) == cents_between(440, 0) == 0


def test_a_shifted_grain_is_shorter() -> None:
    library = library_of([tone(500, 0.1)], [500.0])
    audio = played(library, notes_of([0], [1000.0]), spec_of(RATE, shift_pitch=True))[0]
    assert np.flatnonzero(audio)[-1] == pytest.approx(0.05 * RATE, abs=2)


@pytest.mark.parametrize("stretch", [0.25, 0.5, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("hz", [60.0, 440.0, 1500.0])
def test_stretch_keeps_the_pitch_and_changes_the_length(stretch: float, hz: float) -> None:
    seconds = 0.5
    library = library_of([tone(hz, seconds, partials=1)], [hz])
    spec = spec_of(3 * RATE, grain_duration_ms=5000, use_envelope=False, stretch=stretch)
    audio = played(library, notes_of([0], [hz]), spec)[0]
    lasts = round(seconds * stretch * RATE)
    assert not audio[lasts:].any()
    assert np.abs(audio[int(0.8 * lasts) : int(0.9 * lasts)]).max() > 0.05
    # that it fades is stretched, too
    half = np.abs(audio[round(0.45 * lasts) : round(0.55 * lasts)]).max()
    assert half == pytest.approx(0.25, abs=0.09)
    assert strongest_hz(audio[:lasts]) == pytest.approx(hz, rel=0.01, abs=2 / (seconds * stretch))


@pytest.mark.parametrize("stretch", [0.25, 3.0])
def test_stretch_keeps_the_attack_and_the_duration(stretch: float) -> None:
    library = library_of([tone(200, 2.0)], [200.0])
    settings = {"use_envelope": False, "follow_level": False}
    plain = played(library, notes_of([7], [200.0]), spec_of(RATE, **settings))[0]
    audio = played(library, notes_of([7], [200.0]), spec_of(RATE, stretch=stretch, **settings))[0]
    attack = slice(7, 7 + round(0.015 * RATE))
    np.testing.assert_array_equal(audio[attack], plain[attack])
    assert np.flatnonzero(audio)[-1] == np.flatnonzero(plain)[-1] == 7 + round(0.12 * RATE) - 1


@pytest.mark.parametrize("rate", [8000, 48_000, 384_000])
def test_grains_of_another_rate(rate: int) -> None:
    library = library_of([tone(440, 1.0, partials=1), tone(880, 0.01)], [440.0, 880.0])
    audio = played(library, notes_of([0], [440.0]), spec_of(rate, rate=rate, use_envelope=False))[0]
    assert np.flatnonzero(audio)[-1] == round(0.12 * rate) - 1
    assert strongest_hz(audio[: round(0.12 * rate)], rate) == pytest.approx(440, rel=0.001)
    assert np.abs(audio).max() == pytest.approx(0.5, rel=1e-5)


def test_voices_that_were_not_used_for_long_are_dropped() -> None:
    library = random_library(np.random.default_rng(6), 50)
    asked = playing(grain_pb2.GrainSettings())
    small, large = (Voices(library, asked, RATE, 1, room=room) for room in (50_000, 1 << 25))
    for grain in np.random.default_rng(7).integers(0, 50, 300).tolist():
        np.testing.assert_array_equal(small.voice(grain, 0).samples, large.voice(grain, 0).samples)
    assert small.nbytes <= 50_000 < large.nbytes
