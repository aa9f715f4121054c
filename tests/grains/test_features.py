"""What is measured of grains, against plain loops and known sounds."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from servers.grains.features import brightness_of, in_phase, levels_of
from servers.media.reference import librosa
from tests.grains.signals import RATE, Samples, noise, sawtooth, scaled, seconds, sine


def grains_of(count: int, channels: int, seed: int = 0) -> tuple[Samples, NDArray]:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 3000, count)
    audio = random.standard_normal((channels, lengths.sum())) * np.repeat(random.uniform(0, 2, count), lengths)
    return audio.astype(np.float32), lengths


@pytest.mark.parametrize("channels", [1, 2])
def test_levels_as_a_plain_loop_has_them(channels: int) -> None:
    audio, lengths = grains_of(200, channels)
    audio[:, lengths[0] : lengths[0] + lengths[1]] = 0

    levels = levels_of(audio, lengths)

    begin = 0
    for index, length in enumerate(lengths.tolist()):
        grain = audio[:, begin : begin + length]
        begin += length
        magnitudes = np.abs(grain).max(axis=0)
        peak = int(np.argmax(magnitudes))
        onset = next(frame for frame in range(length) if magnitudes[frame] >= np.float32(0.1) * magnitudes[peak])
        onset = min(onset, max(0, length - 512))
        assert levels.rms[index] == pytest.approx(np.sqrt(np.mean(grain.astype(float) ** 2)), rel=1e-6)
        assert levels.peaks[index] == magnitudes[peak]
        assert levels.onsets[index] == onset
        assert levels.attacks[index] == peak - onset
    assert levels.rms.dtype == levels.peaks.dtype == np.float32
    assert levels.onsets.dtype == levels.attacks.dtype == np.int64


def test_onset_of_a_click_in_noise_to_the_sample() -> None:
    random = np.random.default_rng(0)
    grain = 0.005 * random.uniform(-1, 1, 4000)
    grain[1234] = 0.05
    grain[1240] = -0.4

    levels = levels_of(grain.astype(np.float32)[None], np.array([4000]))

    assert (levels.onsets[0], levels.attacks[0]) == (1234, 6)


@pytest.mark.parametrize("count", [0.005, 0.02, 0.0465, 0.12, 1.0])
def test_brightness_of_sines(count: float) -> None:
    hertz = [1000.0, 3000.0, 9000.0]

    assert brightness_of([sine(hz, count) for hz in hertz], RATE) == pytest.approx(hertz, rel=0.05)


def test_brightness_as_librosa_has_it() -> None:
    """librosa has one for each frame; of what stays the same they are alike."""
    steady = [noise(np.random.default_rng(0), 1.0), sawtooth(220, 1.0), sawtooth(1000, 1.0)]

    found = brightness_of(steady, RATE)

    for value, each in zip(found, steady, strict=True):
        reference = librosa().feature.spectral_centroid(y=each, sr=RATE, center=False)
        assert value == pytest.approx(np.mean(reference), rel=0.03)


def test_brightness_does_not_depend_on_level_or_others() -> None:
    random = np.random.default_rng(0)
    segments = [noise(random, random.uniform(0.001, 0.4)) for _ in range(60)]

    found = brightness_of(segments, RATE)

    np.testing.assert_array_equal([brightness_of([each], RATE)[0] for each in segments], found)
    np.testing.assert_allclose(brightness_of([each * np.float32(1e6) for each in segments], RATE), found, rtol=1e-5)


def test_brightness_of_extremes() -> None:
    edge = scaled(np.tile([1.0, -1.0], 5000), 1.0)
    found = brightness_of([np.zeros(1000, np.float32), np.ones(20_000, np.float32), edge, edge[:1]], RATE)

    assert found[0] == 0
    assert found[1] < 50
    assert RATE / 2 - 50 < found[2] <= RATE / 2
    assert np.isfinite(found).all()
    assert len(brightness_of([], RATE)) == 0


def test_mono_never_cancels() -> None:
    time = seconds(0.1)
    wave = np.sin(2 * np.pi * 220 * time).astype(np.float32)
    lengths = np.array([2000, len(wave) - 2000])
    right = np.concatenate([-wave[:2000], 0.5 * wave[2000:]])

    mono = in_phase(np.stack([wave, right]), lengths)

    np.testing.assert_allclose(mono, np.concatenate([wave[:2000], 0.75 * wave[2000:]]), atol=1e-6)
    np.testing.assert_array_equal(in_phase(wave[None], lengths), wave)


def test_many() -> None:
    count = 30_000
    audio = np.random.default_rng(0).standard_normal((1, count * 512)).astype(np.float32)

    levels = levels_of(audio, np.full(count, 512))
    brightness = brightness_of(audio.reshape(count, 512), RATE)

    assert levels.rms.mean() == pytest.approx(1, rel=0.01)
    assert brightness.mean() == pytest.approx(RATE / 4, rel=0.01)
