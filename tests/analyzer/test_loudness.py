"""Loudness against the test signals of the EBU, FFmpeg's meter, and formulas."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import sosfilt

from servers.analyzer.loudness import Loudness, LoudnessFeature
from servers.analyzer.unknown import Unknown
from servers.media.loudness import k_weighting
from tests.analyzer import ebu
from tests.media import ffmpeg
from tests.media.signals import RATE, Samples, in_cuts, noise, sine


def measured(samples: Samples, rate: int = RATE, piece: int = 50_000) -> Loudness | Unknown:
    feature = LoudnessFeature(rate, len(samples))
    for part in in_cuts(samples, range(0, samples.shape[1], piece)):
        feature.process(part)
    return feature.finish()


def loudness(samples: Samples, rate: int = RATE) -> Loudness:
    found = measured(samples, rate)
    assert isinstance(found, Loudness)
    return found


@pytest.mark.parametrize("case", ebu.INTEGRATED)
def test_integrated_loudness(case: str) -> None:
    """Tech 3341, cases 1 to 5."""
    levels, expected = ebu.INTEGRATED[case]
    found = loudness(ebu.tones(levels), ebu.RATE)
    assert found.integrated_lufs == pytest.approx(expected, abs=0.1)
    assert found.track_gain_db == -18 - found.integrated_lufs
    if len(levels) == 1:
        assert found.momentary_max_lufs == pytest.approx(expected, abs=0.1)
        assert found.short_term_max_lufs == pytest.approx(expected, abs=0.1)


def test_loudness_of_any_3_seconds() -> None:
    """Tech 3341, case 9: the highest is not higher, and the range says that the others are not lower."""
    found = loudness(ebu.tones(ebu.SHORT_TERM), ebu.RATE)
    assert found.short_term_max_lufs == pytest.approx(-23.0, abs=0.1)
    assert found.range_lu == pytest.approx(0.0, abs=0.1)


def test_loudness_of_any_400_milliseconds() -> None:
    """Tech 3341, case 12: the highest is not higher, and none is lower."""
    found = loudness(ebu.tones(ebu.MOMENTARY), ebu.RATE)
    assert found.momentary_max_lufs == pytest.approx(-23.0, abs=0.1)
    bins = len(found.histogram.counts)
    assert -70 + found.histogram.first_bin / 20 >= -23.1
    assert -70 + (found.histogram.first_bin + bins) / 20 <= -22.9


@pytest.mark.parametrize("number", range(20))
def test_the_highest_is_found_wherever_it_is(number: int) -> None:
    """Tech 3341, cases 10 and 13, and 11 and 14, of which each segment is measured by itself."""
    for live, level in ((False, -23.0), (True, -38.0 + number)):
        long = loudness(ebu.segment(number, live=live, step=0.15, length=3.0), ebu.RATE)
        assert long.short_term_max_lufs == pytest.approx(level, abs=0.1)
        short = loudness(ebu.segment(number, live=live, step=0.02, length=0.4), ebu.RATE)
        assert short.momentary_max_lufs == pytest.approx(level, abs=0.1)


@pytest.mark.parametrize("case", ebu.TRUE_PEAKS)
def test_true_peaks(case: str) -> None:
    """Tech 3341, cases 15 to 19."""
    found = loudness(ebu.peak_tone(case), ebu.RATE).true_peak_db
    assert -0.4 <= found - ebu.TRUE_PEAKS[case][3] <= 0.2
    assert found == pytest.approx(20 * math.log10(ebu.TRUE_PEAKS[case][2]), abs=0.05)


@pytest.mark.parametrize("offset", range(4))
def test_hidden_true_peaks(offset: int) -> None:
    """Tech 3341, cases 20 to 23."""
    samples = ebu.hidden_peak(offset)
    found = loudness(samples, ebu.RATE).true_peak_db
    assert -0.4 <= found <= 0.2


@pytest.mark.parametrize("case", ebu.RANGES)
def test_loudness_range(case: str) -> None:
    """Tech 3342, cases 1 to 4: within 1 LU, and here within a tenth."""
    levels, expected = ebu.RANGES[case]
    assert loudness(ebu.tones(levels), ebu.RATE).range_lu == pytest.approx(expected, abs=0.1)


def test_loudness_range_as_defined() -> None:
    """Sorted, gated, the nearest ranks: of all values, not of bins."""
    levels = np.random.default_rng(5).uniform(-45, -15, 40)
    levels[10:16] = -60
    gains = 10 ** (np.interp(np.arange(40 * RATE), np.arange(40) * RATE, levels) / 20)
    samples = (noise(40, 0, seed=6) * gains).astype(np.float32)
    powers = np.square(sosfilt(k_weighting(RATE), samples.astype(np.float64))).sum(axis=0)
    sums = np.cumsum(np.append(0.0, powers))
    starts = np.arange(0, 37 * RATE + 1, RATE // 10)
    means = (sums[starts + 3 * RATE] - sums[starts]) / (3 * RATE)
    heard = np.sort(means[means > means[means > 10**-6.9309].mean() / 100])
    assert len(heard) < len(means)
    low, high = (10 * math.log10(heard[round(share * (len(heard) - 1))]) for share in (0.10, 0.95))
    assert loudness(samples).range_lu == pytest.approx(high - low, abs=0.0101)


@pytest.mark.parametrize(("rate", "channels"), [(44_100, 1), (44_100, 2), (48_000, 1), (96_000, 2)])
def test_as_ffmpeg(rate: int, channels: int) -> None:
    levels = np.random.default_rng(4).uniform(-50, -15, 13)
    frames = 40 * rate
    gains = 10 ** (np.interp(np.arange(frames), np.linspace(0, frames, 13), levels) / 20)
    programme = np.clip(noise(40, 0, seed=5, rate=rate, channels=channels) * gains, -1, 1).astype(np.float32)
    found, theirs = loudness(programme, rate), ffmpeg.ebur128(programme, rate)
    assert found.integrated_lufs == pytest.approx(theirs["I"], abs=0.02)
    # Where ranks fall between two values, theirs takes the lower one.
    assert found.range_lu == pytest.approx(theirs["LRA"], abs=0.25)
    if rate < 96_000:  # theirs goes to 192 kHz only
        assert found.true_peak_db == pytest.approx(theirs["true_peak"], abs=0.5)


@pytest.mark.parametrize("rate", [8_000, 11_025, 192_000])
def test_sines_at_other_rates(rate: int) -> None:
    """997 Hz at full scale on one channel is -3.01 LUFS; the crest of a sine is 3.01 dB."""
    found = loudness(sine(997, 7, -20, rate=rate)[:1], rate)
    assert found.integrated_lufs == pytest.approx(-23.01, abs=0.25)
    # It ends at once, and rings.
    assert found.crest_db == pytest.approx(3.01, abs=0.1)
    assert found.true_peak_db == pytest.approx(-20, abs=0.1)
    assert found.dynamic_range_db == pytest.approx(0.0, abs=0.02)
    both = loudness(sine(997, 7, -20, rate=rate), rate)
    assert both.integrated_lufs - found.integrated_lufs == pytest.approx(3.01, abs=0.01)


def test_gain_moves_all_that_it_should() -> None:
    quiet = loudness(noise(8, -40, seed=1))
    loud = loudness(10 * noise(8, -40, seed=1))
    for name in ("integrated_lufs", "momentary_max_lufs", "short_term_max_lufs", "true_peak_db"):
        assert getattr(loud, name) - getattr(quiet, name) == pytest.approx(20, abs=1e-4)
    for name in ("range_lu", "crest_db", "dynamic_range_db"):
        assert getattr(loud, name) == pytest.approx(getattr(quiet, name), abs=0.0101)


def test_the_histogram_has_every_gating_block() -> None:
    found = loudness(ebu.tones([(-23, 5), (-40, 5)]), ebu.RATE).histogram
    assert sum(found.counts) == 97
    assert found.counts[0] > 40
    assert found.counts[-1] > 40
    assert found.first_bin == pytest.approx(30 * 20, abs=2)
    assert len(found.counts) == pytest.approx(17 * 20, abs=3)


@pytest.mark.parametrize(
    ("seconds", "absent"),
    [
        (0.4, {"short_term_max_lufs", "range_lu", "dynamic_range_db"}),
        (2.99, {"short_term_max_lufs", "range_lu", "dynamic_range_db"}),
        (3.0, {"range_lu", "dynamic_range_db"}),
        (5.99, {"range_lu", "dynamic_range_db"}),
        (6.0, set()),
    ],
)
def test_what_short_ones_lack(seconds: float, absent: set[str]) -> None:
    found = dataclasses.asdict(loudness(noise(seconds, -20, seed=3)))
    assert {name for name, value in found.items() if value is None} == absent


@pytest.mark.parametrize(("frames", "absent"), [(66_149, True), (66_150, False)])
def test_six_seconds_are_so_at_every_rate(frames: int, absent: bool) -> None:
    """Of 11,025 Hz, 60 hops of 0.1 s to the nearest frame are longer."""
    found = loudness(noise(6.1, -20, seed=3, rate=11_025)[:, :frames], 11_025)
    assert (found.range_lu is None, found.dynamic_range_db is None) == (absent, absent)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.ones((1, 1), np.float32), "TOO_SHORT"),
        (noise(0.01, -20, seed=1), "TOO_SHORT"),
        (noise(0.399, -20, seed=1), "TOO_SHORT"),
        (np.zeros((2, RATE), np.float32), "SILENT"),
        (sine(997, 2, -71), "SILENT"),
    ],
)
def test_what_has_no_loudness(samples: Samples, reason: str) -> None:
    found = measured(samples)
    assert isinstance(found, Unknown)
    assert found.reason == reason


def test_what_is_strange() -> None:
    """DC fades out in the high-pass; a click is a click; what is far too loud is so."""
    constant = loudness(np.full((2, 10 * RATE), 0.5, np.float32))
    assert -6.02 < constant.true_peak_db < -4.5  # it begins and ends at once
    assert constant.integrated_lufs < -20
    click = np.zeros((1, 7 * RATE), np.float32)
    click[0, 2 * RATE] = 1.0
    assert loudness(click).true_peak_db == 0.0
    enormous = loudness(1e6 * noise(7, 0, seed=1))
    assert 115 < enormous.integrated_lufs < 130
    assert all(math.isfinite(value) for value in dataclasses.astuple(enormous)[:-1])


@settings(max_examples=25, deadline=None)
@given(data=st.data(), rate=st.sampled_from([1_000, 8_000, 11_025, 22_050]), channels=st.integers(1, 2))
def test_cuts_do_not_matter(data: st.DataObject, rate: int, channels: int) -> None:
    frames = data.draw(st.integers(1, 8 * rate))
    samples = noise(8, -20, seed=7, rate=rate, channels=channels)[:, :frames]
    cuts = data.draw(st.lists(st.integers(0, frames), max_size=30))
    feature = LoudnessFeature(rate, channels)
    for part in in_cuts(samples, cuts):
        feature.process(part)
    found: Any = feature.finish()
    whole = measured(samples, rate, piece=frames)
    if isinstance(whole, Loudness):
        # Matrix products of other sizes may be rounded otherwise.
        assert found.true_peak_db == pytest.approx(whole.true_peak_db, abs=1e-4)
        peaks = {"true_peak_db": whole.true_peak_db, "crest_db": whole.crest_db}
        assert found.crest_db == pytest.approx(whole.crest_db, abs=1e-4)
        found = dataclasses.replace(found, **peaks)
    assert found == whole
