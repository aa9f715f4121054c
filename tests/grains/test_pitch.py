"""Pitches of short pieces against known ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from servers.grains.pitch import HIGH_HZ, LOW_HZ, pitches
from servers.media.reference import librosa
from tests.grains.signals import PITCHED, RATE, UNPITCHED, Samples, noise, partials, sawtooth, sine, thump

HERTZ = np.geomspace(60, 2000, 61)


def cents(found: Samples, truth: NDArray | float) -> NDArray:
    assert (found > 0).all()
    return np.abs(1200 * np.log2(found / truth))


@pytest.mark.parametrize("snr_db", [None, 20, 10])
@pytest.mark.parametrize("sound", PITCHED)
def test_known_pitches(sound: Callable[[float], Samples], snr_db: float | None) -> None:
    random = np.random.default_rng(0)
    segments = np.stack([sound(hz) for hz in HERTZ])
    if snr_db is not None:
        levels = np.sqrt(np.square(segments).mean(axis=1, keepdims=True)) * 10 ** (-snr_db / 20)
        segments = (segments + levels * random.standard_normal(segments.shape)).astype(np.float32)

    errors = cents(pitches(segments, RATE), HERTZ)

    assert np.mean(errors > 50) <= 0.04
    assert np.median(errors) < 20


@pytest.mark.parametrize("sound", [sine, sawtooth])
def test_to_two_cents(sound: Callable[[float], Samples]) -> None:
    assert cents(pitches([sound(hz) for hz in HERTZ], RATE), HERTZ).max() < 2


@pytest.mark.parametrize("count", [0.04, 0.12, 1.0])
@pytest.mark.parametrize("sound", UNPITCHED)
def test_no_pitch(sound: Callable[..., Samples], count: float) -> None:
    random = np.random.default_rng(1)

    found = pitches([sound(random, count) for _ in range(20)], RATE)

    assert not found.any(), found


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000, 96_000, 384_000])
def test_rates(rate: int) -> None:
    hertz = [65.4, 440.0, 2000.0]

    assert cents(pitches([sine(hz, 0.2, rate) for hz in hertz], rate), np.array(hertz)).max() < 5


def test_range() -> None:
    inside = [sawtooth(hz, 0.25) for hz in (LOW_HZ, HIGH_HZ)]
    outside = [sawtooth(hz, 0.25) for hz in (0.9 * LOW_HZ, 1.1 * HIGH_HZ)]

    found = pitches([*inside, *outside], RATE)

    assert cents(found[:2], np.array([LOW_HZ, HIGH_HZ])).max() < 5
    assert found[0] >= np.float32(LOW_HZ)
    assert found[1] <= np.float32(HIGH_HZ)
    assert list(found[2:]) == [0, 0]


def test_less_than_two_periods_is_unknown() -> None:
    found = pitches([sawtooth(50, 0.035), sawtooth(50, 0.09)], RATE)

    assert found[0] == 0
    assert found[1] == pytest.approx(50, rel=0.01)


def test_levels() -> None:
    """The level does not matter, as long as it is not silent."""
    segments = [np.float32(gain) * sawtooth(220) for gain in (0, 1e-4, 5e-3, 1, 1e6)]

    found = pitches(segments, RATE)

    assert list(found[:2]) == [0, 0]
    assert found[2:] == pytest.approx(220, rel=0.001)
    assert pitches([sawtooth(220) + np.float32(0.5)], RATE) == pytest.approx(220, rel=0.001)


def test_the_longest_of_several() -> None:
    melody = np.concatenate([sawtooth(220, 0.3), sawtooth(330, 0.9), sawtooth(262, 0.4)])
    struck = np.concatenate([sawtooth(220, 0.3), noise(np.random.default_rng(0), 2.0)])

    assert pitches([melody, struck], RATE) == pytest.approx([330, 0], rel=0.001)


def test_each_on_its_own() -> None:
    random = np.random.default_rng(0)
    segments = [sound(random, random.uniform(0.001, 0.7)) for sound in UNPITCHED]
    segments += [sound(random.uniform(40, 2000), random.uniform(0.012, 0.7)) for sound in PITCHED * 20]

    together = pitches(segments, RATE)

    order = random.permutation(len(segments))
    np.testing.assert_array_equal(pitches([segments[i] for i in order], RATE), together[order])
    np.testing.assert_array_equal([pitches([each], RATE)[0] for each in segments], together)
    same = np.stack([sawtooth(100), sine(300)])
    np.testing.assert_array_equal(pitches(same, RATE), pitches(list(same), RATE))


def test_nothing() -> None:
    assert pitches([], RATE).shape == (0,)
    assert pitches(np.zeros((0, 100), np.float32), RATE).shape == (0,)
    found = pitches([np.zeros(0, np.float32), np.ones(1, np.float32), np.array([1, -1], np.float32)], RATE)
    assert list(found) == [0, 0, 0]
    assert found.dtype == np.float32


def test_as_good_as_pyin() -> None:
    """Where both find a pitch it is the same; and of what has none, pYIN gives more a pitch."""
    pieces = [sound(196.0) for sound in PITCHED]
    pieces += [thump(np.random.default_rng(0)), partials(5000, [1], 0.12)]

    ours = pitches(pieces, RATE)

    theirs = []
    for piece in pieces:
        f0, voiced, _ = librosa().pyin(
            piece, fmin=LOW_HZ, fmax=HIGH_HZ, sr=RATE, frame_length=4096, no_trough_prob=0.001
        )
        theirs.append(np.median(f0[voiced]) if voiced.mean() >= 0.5 else 0)
    reference = np.array(theirs)
    both = (ours > 0) & (reference > 0)
    assert np.count_nonzero(both) >= len(PITCHED) - 1
    assert cents(ours[both], reference[both]).max() < 25
    assert np.count_nonzero(ours) <= np.count_nonzero(reference)
