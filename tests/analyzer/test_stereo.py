"""Width and phase of signals of which they are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.analyzer.stereo import MAX_BALANCE_DB, Stereo, StereoFeature
from servers.analyzer.unknown import Unknown
from tests.media.signals import RATE, Samples, in_cuts, noise, sine


def measured(samples: Samples, rate: int = RATE, cuts: list[int] | None = None) -> Stereo | Unknown:
    feature = StereoFeature(rate)
    for part in in_cuts(samples, range(0, samples.shape[1], 30_000) if cuts is None else cuts):
        feature.process(part)
    return feature.finish()


def stereo(samples: Samples, rate: int = RATE) -> Stereo:
    found = measured(samples, rate)
    assert isinstance(found, Stereo)
    return found


@pytest.mark.parametrize(("phase", "correlation"), [(0, 1.0), (math.pi / 3, 0.5), (math.pi / 2, 0.0), (math.pi, -1.0)])
@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_correlation_is_the_cosine_of_the_phase(phase: float, correlation: float, rate: int) -> None:
    samples = np.stack([sine(100, 5, -20, rate=rate)[0], sine(100, 5, -14, rate=rate, phase=phase)[0]])
    found = stereo(samples, rate)
    assert found.correlation == pytest.approx(correlation, abs=1e-5)
    assert found.min_correlation == pytest.approx(correlation, abs=1e-5)
    assert found.balance_db == pytest.approx(6.0, abs=1e-4)
    # (L - R)² / (2 (L² + R²)) of amplitudes 1 and 2
    gain = 10 ** (6 / 20)
    assert found.width == pytest.approx((1 + gain**2 - 2 * gain * correlation) / (2 * (1 + gain**2)), abs=1e-5)


def test_what_both_channels_have_is_not_wide() -> None:
    assert stereo(noise(4, -20, seed=1, channels=1).repeat(2, axis=0)) == Stereo(1.0, 0.0, 0.0, 1.0)


def test_noise_that_has_nothing_in_common() -> None:
    found = stereo(noise(20, -20, seed=1))
    assert found.correlation == pytest.approx(0.0, abs=0.01)
    assert found.width == pytest.approx(0.5, abs=0.01)


def test_the_lowest_correlation_is_of_3_seconds() -> None:
    """The right channel is turned round for 3 s; and for 1 s, and where it is silent, which does not show."""
    left = noise(30, -20, seed=1)[0]
    right = left.copy()
    right[20 * RATE : 21 * RATE] *= -1
    both = np.stack([left, right])
    both[:, 25 * RATE :] *= np.array([[1e-5], [-1e-5]], np.float32)
    assert stereo(both).min_correlation == pytest.approx(1 / 3, abs=0.01)
    both[1, round(10.05 * RATE) : round(13.05 * RATE)] *= -1
    assert stereo(both).min_correlation == pytest.approx(-1 + 2 * 0.05 / 3, abs=0.01)
    assert stereo(both).correlation > 0.6


def test_one_channel_only() -> None:
    found = stereo(noise(5, -20, seed=1) * np.array([[1], [0]], np.float32))
    assert found == Stereo(correlation=0.0, width=0.5, balance_db=-MAX_BALANCE_DB, min_correlation=0.0)


@pytest.mark.parametrize("frames", [1, 441, RATE])
def test_short(frames: int) -> None:
    samples = np.stack([np.full(frames, 0.5, np.float32), np.full(frames, -0.5, np.float32)])
    assert stereo(samples) == Stereo(-1.0, 1.0, 0.0, -1.0)


def test_what_has_none() -> None:
    silent = measured(sine(441, 1, -70.5))
    assert isinstance(silent, Unknown)
    assert silent.reason == "SILENT"


@settings(max_examples=25, deadline=None)
@given(data=st.data(), rate=st.sampled_from([1_000, 11_025, 22_050]))
def test_cuts_do_not_matter(data: st.DataObject, rate: int) -> None:
    frames = data.draw(st.integers(1, 5 * rate))
    samples = noise(5, -20, seed=7, rate=rate)[:, :frames]
    cuts = data.draw(st.lists(st.integers(0, frames), max_size=30))
    assert measured(samples, rate, cuts) == measured(samples, rate, [])
