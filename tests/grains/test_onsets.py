"""Where sounds begin, to the sample."""

from __future__ import annotations

import numpy as np
import pytest

from servers.grains.onsets import BACK_SECONDS, HOPS_PER_SECOND, LATE_SECONDS, Onsets, Positions, Values, refined
from tests.grains.stems import Stem, burst, tone

RATE = 44_100


def places(rate: int, count: int, seed: int, apart: float = 0.25) -> list[float]:
    """Seconds, at least ``apart`` - 0.05 s from each other."""
    jitter = np.random.default_rng(seed).uniform(0, 0.05, count)
    return [round((0.1 + apart * k + jitter[k]) * rate) / rate for k in range(count)]


def rough_errors(stem: Stem, seed: int) -> tuple[Values, Positions]:
    """How clear onsets are, and how far what ``refined`` finds is from the truth; it is told them inexactly."""
    late = np.random.default_rng(seed).uniform(-0.003, 0.012, len(stem.onsets)) * stem.rate
    rough = np.array(stem.onsets, np.int64) + late.astype(np.int64)
    found, clarity = refined(stem.samples, rough, stem.rate)
    assert (found >= rough - BACK_SECONDS * stem.rate).all()
    assert (found <= rough + LATE_SECONDS * stem.rate).all()
    return clarity, found - np.array(stem.onsets, np.int64)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000, 192_000])
def test_clicks_in_silence_are_exact(rate: int) -> None:
    stem = Stem.silent(3, rate)
    for at in places(rate, 10, 1):
        stem.play(at, np.array([0.01 + at / 4]))
    clarity, away = rough_errors(stem, 2)
    assert not away.any()
    assert clarity.min() > 1


def test_a_click_may_be_the_first_sample_or_the_last() -> None:
    samples = np.zeros(RATE, np.float32)
    samples[[0, -1]] = 0.5
    found, _ = refined(samples, np.array([0, 441, RATE - 300, RATE]), RATE)
    assert found.tolist() == [0, 0, RATE - 1, RATE - 1]


@pytest.mark.parametrize("rate", [22_050, 44_100, 96_000])
@pytest.mark.parametrize(("attack", "noise", "late"), [(0, 0, 0), (0, 40, 0.0001), (0.005, 0, 0), (0.005, 40, 0.0012)])
def test_tones(rate: int, attack: float, noise: float, late: float) -> None:
    """What rises slowly is found when it can be told from the noise."""
    stem = Stem.silent(6, rate)
    for k, at in enumerate(places(rate, 20, 3)):
        stem.play(at, 0.5 * tone(82.4 * 2 ** (k / 5), 0.2, rate, attack=attack, decay=0.3))
    _, away = rough_errors(stem.with_noise(noise) if noise else stem, 4)
    assert away.min() >= 0
    assert away.max() <= late * rate


def test_bursts_in_noise_are_exact() -> None:
    stem, random = Stem.silent(3, RATE), np.random.default_rng(5)
    for at in places(RATE, 10, 6):
        stem.play(at, 0.7 * burst(0.05, RATE, random))
    _, away = rough_errors(stem.with_noise(40), 7)
    assert np.abs(away).max() <= 1


def test_a_hit_over_a_loud_low_tone_is_exact() -> None:
    stem, random = Stem.silent(3, RATE), np.random.default_rng(8)
    for at in places(RATE, 10, 9):
        stem.play(at, 0.1 * burst(0.05, RATE, random, above_hertz=5000))
    stem.samples += (0.8 * np.sin(2 * np.pi * 55 * np.arange(3 * RATE) / RATE)).astype(np.float32)
    _, away = rough_errors(stem, 10)
    assert np.abs(away).max() <= 2


def test_what_gets_no_louder_is_not_clear() -> None:
    time = np.arange(RATE) / RATE
    samples = np.where(time < 0.5, 0.5 * np.sin(2 * np.pi * 220 * time), 0).astype(np.float32)
    _, clarity = refined(samples, np.array([RATE // 4, RATE // 2, RATE // 2 + 200]), RATE)
    assert clarity.max() < 0.02


def test_nothing_to_refine() -> None:
    found, clarity = refined(np.zeros(100, np.float32), np.zeros(0, np.int64), RATE)
    assert len(found) == len(clarity) == 0


def test_onsets_come_in_time() -> None:
    """Whatever is before ``until`` has been said, and that follows the stream by less than 0.12 s."""
    stem = Stem.silent(6, RATE)
    for at in places(RATE, 20, 11):
        stem.play(at, tone(440, 0.1, RATE))
    onsets, found = Onsets(RATE), []
    for begin in range(0, len(stem.samples), RATE // 10):
        before = onsets.until
        part = onsets.process(stem.samples[begin : begin + RATE // 10])
        assert ((part >= before) & (part < onsets.until)).all()
        found += part.tolist()
        assert onsets.until > begin + RATE // 10 - 0.12 * RATE or not begin
    found += onsets.finish().tolist()
    assert len(found) == 20
    assert np.abs(np.array(found) - stem.onsets).max() < 0.02 * RATE
    assert not (np.array(found) % (RATE // HOPS_PER_SECOND)).any()
