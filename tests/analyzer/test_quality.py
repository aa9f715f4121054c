"""Clipping, silence and DC of signals of which they are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.analyzer.quality import Quality, QualityFeature
from tests.media import ffmpeg
from tests.media.signals import RATE, Samples, in_cuts, noise, sine


def quality(samples: Samples, rate: int = RATE, cuts: list[int] | None = None) -> Quality:
    feature = QualityFeature(rate, len(samples))
    for part in in_cuts(samples, range(0, samples.shape[1], 30_000) if cuts is None else cuts):
        feature.process(part)
    return feature.finish()


def in_16_bits(samples: Samples) -> Samples:
    return (np.rint(samples * 32767) / 32768).astype(np.float32)


def runs_of(mask: np.ndarray) -> tuple[int, int]:
    """Runs of 3 and more in one row, and what is in them: counted one by one."""
    runs = total = length = 0
    for value in [*mask, False]:
        if value:
            length += 1
            continue
        if length >= 3:
            runs, total = runs + 1, total + length
        length = 0
    return runs, total


@pytest.mark.parametrize("gain", [1.0, 0.7, 0.05])
def test_a_sine_that_was_cut_off(gain: float) -> None:
    """At full scale, or made quieter after that: the tops of each period, of both channels."""
    wave = np.clip(1.2 * sine(441, 1, 0, phase=0.3), -1, 1)
    runs, samples = runs_of(wave[0] >= 1)
    below = runs_of(wave[0] <= -1)
    assert runs >= 440
    found = quality(in_16_bits(gain * wave))
    assert (found.clipped_runs, found.clipped_samples) == (2 * (runs + below[0]), 2 * (samples + below[1]))


def test_each_channel_and_side_has_its_own_highest() -> None:
    wave = np.clip(1.5 * sine(441, 1, 0)[0], -0.5, 2.0)
    found = quality(np.stack([0.6 * wave, sine(441, 1, 0)[0] * 0.9]).astype(np.float32))
    assert found.clipped_runs == 441
    assert found.sample_peak == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize(
    "samples",
    [
        in_16_bits(sine(50, 2, -6)),  # flat at its top by quantization
        in_16_bits(sine(30, 2, -30)),
        in_16_bits(sine(997, 2, 0)),
        noise(2, -12, seed=1),
        np.full((1, RATE), 0.5, np.float32),
        np.zeros((2, RATE), np.float32),
        np.repeat(np.array([[0.2, 1.0, 1.0, 0.2]], np.float32), 50, axis=0).reshape(1, -1),
    ],
)
def test_what_was_not_cut_off(samples: Samples) -> None:
    found = quality(samples)
    assert (found.clipped_runs, found.clipped_samples) == (0, 0)


def test_what_is_beyond_full_scale() -> None:
    """Floating-point samples, as of a decoder, that a converter would clip."""
    loud = 2 * sine(441, 1, 0)
    found = quality(loud)
    expected = [runs_of(side * loud[0] >= 0.9999) for side in (1, -1)]
    assert found.clipped_runs == 2 * sum(runs for runs, _ in expected)
    assert found.clipped_samples == 2 * sum(samples for _, samples in expected)


@pytest.mark.parametrize("rate", [1_000, 8_000, 44_100, 192_000])
def test_silence_at_the_ends(rate: int) -> None:
    samples = np.zeros((2, 10 * rate), np.float32)
    samples[1, rate * 2 + 3 : rate * 7] = 0.1
    samples += 3e-4  # -70.5 dBFS
    found = quality(samples, rate)
    assert found.leading_silence_seconds == pytest.approx(2 + 3 / rate, abs=1e-9)
    assert found.trailing_silence_seconds == pytest.approx(3, abs=1e-9)
    assert found.silent_share == pytest.approx(0.5, abs=0.006)
    assert not found.silent


def test_silence() -> None:
    found = quality(sine(441, 2.02, -70.5))
    assert found.silent
    assert found.leading_silence_seconds == found.trailing_silence_seconds == pytest.approx(2.02)
    assert found.silent_share == 1.0
    assert not quality(sine(441, 2, -69.5)).silent


def test_dc_and_peak_as_ffmpeg() -> None:
    samples = noise(5, -20, seed=1) + np.array([[0.01], [-0.2]], np.float32)
    found, theirs = quality(samples), ffmpeg.statistics(samples, RATE)
    for channel in (0, 1):
        assert found.dc_offsets[channel] == pytest.approx(theirs[f"{channel + 1}.DC_offset"], abs=2e-6)
        assert found.dc_offsets[channel] == pytest.approx(float(samples[channel].mean(dtype=np.float64)), abs=1e-7)
    assert found.sample_peak == pytest.approx(10 ** (theirs["Overall.Peak_level"] / 20), rel=1e-6)


@pytest.mark.parametrize("samples", [np.full((1, 1), -0.5, np.float32), np.full((2, 10), -0.5, np.float32)])
def test_very_short(samples: Samples) -> None:
    found = quality(samples)
    assert found == Quality(0, 0, (-0.5,) * len(samples), 0.0, 0.0, 0.0, False, 0.5)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), channels=st.integers(1, 2), seed=st.integers(0, 5))
def test_cuts_do_not_matter(data: st.DataObject, channels: int, seed: int) -> None:
    """Of few levels, so that there are many runs, at levels that rise; each side counted one by one, too."""
    rate = data.draw(st.sampled_from([1_000, 11_025]))
    rng = np.random.default_rng(seed)
    samples = np.clip(rng.normal(0, 0.5, (channels, 2_000)), -0.5, rng.choice([0.4, 1.0])).astype(np.float32)
    samples = np.repeat(samples, rng.integers(1, 4, 2_000), axis=1)
    samples[:, : rng.integers(1, 1_500)] *= np.float32(rng.choice([1e-5, 0.5, 1]))
    cuts = data.draw(st.lists(st.integers(0, samples.shape[1]), max_size=40))
    found = quality(samples, rate, cuts)
    assert found == quality(samples, rate, [])
    counted = [runs_of(side * row >= min(0.9999, (side * row).max())) for row in samples for side in (1, -1)]
    assert found.clipped_runs == sum(runs for runs, _ in counted)
    assert found.clipped_samples == sum(length for _, length in counted)
