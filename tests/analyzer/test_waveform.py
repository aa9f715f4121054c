"""Waveforms against what they say they are, point by point."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.analyzer.waveform import Peaks, WaveformFeature, reduced
from tests.media.signals import RATE, Samples, in_cuts, noise, sine


def waveform(samples: Samples, rate: int = RATE, cuts: list[int] | None = None) -> Peaks:
    feature = WaveformFeature(rate, samples.shape[1])
    for part in in_cuts(samples, range(0, samples.shape[1], 30_000) if cuts is None else cuts):
        feature.process(part)
    return feature.finish()


def assert_same(found: Peaks, expected: Peaks) -> None:
    for name in ("minima", "maxima", "rms"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert found.start_seconds == pytest.approx(expected.start_seconds)
    assert found.points_per_second == pytest.approx(expected.points_per_second)


@pytest.mark.parametrize("rate", [1_000, 8_000, 11_025, 22_050, 44_100, 44_099, 192_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_each_point(rate: int, channels: int) -> None:
    samples = noise(3.337, -8, seed=1, rate=rate, channels=channels)
    found = waveform(samples, rate)
    edges = [point * rate // 100 for point in range(len(found.minima))] + [samples.shape[1]]
    assert edges[-2] < edges[-1] <= len(found.minima) * rate // 100 + 1
    assert 1 <= edges[-1] - edges[-2] <= rate / 100 + 1
    for point in range(len(found.minima)):
        piece = samples[:, edges[point] : edges[point + 1]].astype(np.float64)
        assert found.minima[point] == round(127 * max(-1, piece.min()))
        assert found.maxima[point] == round(127 * min(1, piece.max()))
        assert found.rms[point] == pytest.approx(255 * min(1, math.sqrt(np.square(piece).mean())), abs=0.501)


def test_no_drift() -> None:
    """A click each second is in each hundredth point, for 10 minutes at 11,025 Hz (110.25 frames a point)."""
    clicks = np.zeros((1, 600 * 11_025), np.float32)
    clicks[0, ::11_025] = 1.0
    found = waveform(clicks, 11_025)
    np.testing.assert_array_equal(np.flatnonzero(found.maxima), np.arange(0, 60_000, 100))
    assert len(found.maxima) == 60_000


def test_beyond_full_scale() -> None:
    found = waveform(4 * sine(441, 1, 0))
    assert (found.minima.min(), found.maxima.max(), found.rms.max()) == (-127, 127, 255)


@pytest.mark.parametrize("frames", [1, 2, 9, 441])
def test_very_short(frames: int) -> None:
    found = waveform(np.full((2, frames), 0.5, np.float32))
    assert_same(found, Peaks(np.array([64], np.int8), np.array([64], np.int8), np.array([128], np.uint8)))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), rate=st.integers(1_000, 50_000), channels=st.integers(1, 2))
def test_cuts_do_not_matter(data: st.DataObject, rate: int, channels: int) -> None:
    frames = data.draw(st.integers(1, 3 * rate))
    samples = noise(3, -10, seed=7, rate=rate, channels=channels)[:, :frames]
    cuts = data.draw(st.lists(st.integers(0, frames), max_size=30))
    assert_same(waveform(samples, rate, cuts), waveform(samples, rate, []))


def test_reduced_is_the_same_where_all_fit() -> None:
    whole = waveform(noise(7.3, -10, seed=1))
    for end in (0, 7.3, 100):
        assert_same(reduced(whole, 0, end, 730), whole)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_reduced(data: st.DataObject) -> None:
    """At most so many points; all that lies in the stretch is in one of them, and nothing else."""
    total = data.draw(st.integers(1, 2_000))
    rng = np.random.default_rng(total)
    lows, highs = rng.integers(-127, 1, total).astype(np.int8), rng.integers(0, 128, total).astype(np.int8)
    peaks = Peaks(lows, highs, rng.integers(0, 256, total).astype(np.uint8))
    first = data.draw(st.integers(0, total - 1))
    last = data.draw(st.integers(first + 1, total))
    points = data.draw(st.integers(1, 2_500))
    found = reduced(peaks, first / 100, last / 100, points)
    count = min(points, last - first)
    edges = [first + point * (last - first) // count for point in range(count + 1)]
    assert len(found.minima) == len(found.maxima) == len(found.rms) == count
    for point in range(count):
        share = slice(edges[point], edges[point + 1])
        assert found.minima[point] == lows[share].min()
        assert found.maxima[point] == highs[share].max()
        assert found.rms[point] == round(math.sqrt(np.square(peaks.rms[share].astype(float)).mean()))
    assert found.start_seconds == pytest.approx(first / 100)
    assert count / found.points_per_second == pytest.approx((last - first) / 100)


@pytest.mark.parametrize(("start", "end"), [(8, 0), (7.3, 9), (5, 4), (3, 3)])
def test_nothing_is_left(start: float, end: float) -> None:
    assert len(reduced(waveform(noise(7.3, -10, seed=1)), start, end, 100).minima) == 0
