"""Grain libraries of sounds that are known."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from contrafact.v1 import grain_pb2

from servers.grains import building
from servers.grains.building import CannotCut, build
from servers.grains.library import Library, decode, encode
from servers.grains.preview import preview
from tests.grains.signals import RATE, Samples, noise, sawtooth

HERTZ = (110.0, 220.0, 330.0, 440.0)
GAINS = (1.0, 0.5, 0.7, 0.3)
FIXED = grain_pb2.Cut(segmentation=grain_pb2.SEGMENTATION_FIXED, grain_ms=50, jitter=0.3, seed=7)
ONSETS = grain_pb2.Cut(segmentation=grain_pb2.SEGMENTATION_ONSETS)


def scale_of_tones(rate: int = RATE) -> Samples:
    """Four tones of 0.4 s, and a noise, each after 0.3 s of silence."""
    tones = [np.float32(gain) * sawtooth(hz, 0.4, rate) for hz, gain in zip(HERTZ, GAINS, strict=True)]
    tones.append(np.resize(noise(np.random.default_rng(0), 0.4), round(0.4 * rate)))
    return np.concatenate([np.pad(tone, (round(0.3 * rate), 0)) for tone in tones])[None]


def built(samples: Samples, cut: grain_pb2.Cut | None = None, rate: int = RATE) -> Library:
    return build(samples, rate, cut or grain_pb2.Cut(), lambda share: None)


def check(library: Library) -> None:
    """That it is sound, and can be stored."""
    np.testing.assert_array_equal(library.offsets, np.cumsum(library.lengths) - library.lengths)
    back = decode(encode(library))
    np.testing.assert_array_equal(back.pitches, library.pitches)
    np.testing.assert_array_equal(back.onsets, library.onsets)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 96_000])
def test_known_tones(rate: int) -> None:
    samples = scale_of_tones(rate)

    library = built(samples, rate=rate)

    check(library)
    assert len(library) == 5
    assert library.pitches == pytest.approx([*HERTZ, 0], rel=0.003)
    assert library.peaks[:4] == pytest.approx(0.3 * np.array(GAINS), rel=0.001)
    begins = 0.3 + 0.7 * np.arange(5)
    assert library.starts + library.onsets / rate == pytest.approx(begins, abs=0.005)
    assert library.lengths / rate == pytest.approx([0.4] * 5, abs=2 * 2048 / rate + 0.001)
    assert np.all(np.diff(library.brightness[[0, 4]]) > 0)
    for index in range(5):
        begin, length = library.offsets[index], library.lengths[index]
        first = round(library.starts[index] * rate)
        np.testing.assert_array_equal(library.audio[:, begin : begin + length], samples[:, first : first + length])
        assert library.rms[index] == pytest.approx(np.sqrt(np.mean(samples[:, first : first + length] ** 2)), rel=1e-5)


def test_begins_where_the_part_begins() -> None:
    cut = grain_pb2.Cut(start_seconds=100)
    np.testing.assert_allclose(built(scale_of_tones(), cut).starts, 100 + built(scale_of_tones()).starts)


@pytest.mark.parametrize("cut", [grain_pb2.Cut(), FIXED, ONSETS])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_same_again(cut: grain_pb2.Cut, channels: int) -> None:
    samples = np.repeat(scale_of_tones(), channels, axis=0)

    library = built(samples, cut)

    check(library)
    assert encode(library) == encode(built(samples.copy(), cut))
    assert np.count_nonzero(library.pitches) >= len(library) // 2


def test_channels_that_cancel_have_a_pitch() -> None:
    mono = scale_of_tones()

    library = built(np.concatenate([mono, -mono]))

    assert library.pitches == pytest.approx([*HERTZ, 0], rel=0.003)


def test_one_grain_and_extremes() -> None:
    tone = sawtooth(220, 0.5)[None]
    for samples, rate in ((tone, RATE), (tone[:, :512], RATE), (tone / 0.3 * np.float32(1e6), RATE), (tone, 384_000)):
        library = built(samples.astype(np.float32), rate=rate)
        check(library)
        assert len(library) == 1


def test_groups_of_grains_do_not_show() -> None:
    samples = np.tile(scale_of_tones(), 12)

    library = built(samples, FIXED)

    check(library)
    check(built(samples, grain_pb2.Cut(top_db=100)))  # one grain of 42 s
    alone = built(samples[:, : round(17.6 * RATE)], FIXED)
    np.testing.assert_array_equal(library.starts[: len(alone)], alone.starts)
    np.testing.assert_array_equal(library.pitches[: len(alone)], alone.pitches)
    np.testing.assert_array_equal(library.brightness[: len(alone)], alone.brightness)


def test_progress() -> None:
    shares: list[float] = []
    build(np.tile(scale_of_tones(), 12), RATE, ONSETS, shares.append)
    assert shares == sorted(shares)
    assert shares[0] >= 0
    assert shares[-1] == 1
    assert len(shares) > 8


def test_silence_gives_no_library() -> None:
    with pytest.raises(CannotCut) as error:
        built(np.zeros((2, RATE), np.float32))
    assert error.value.reason == "STYLE_SILENT"


def test_preview_of_few_grains() -> None:
    library = built(np.repeat(scale_of_tones(), 2, axis=0))

    heard = preview(library)

    lengths = library.lengths - library.onsets
    gap = round(0.05 * RATE)
    assert heard.shape == (2, lengths.sum() + 4 * gap)
    assert heard.dtype == np.float32
    first = library.onsets[0]
    np.testing.assert_array_equal(heard[:, :10_000], library.audio[:, first : first + 10_000])
    assert not heard[:, lengths[0] : lengths[0] + gap].any()


@pytest.mark.parametrize("cut", [grain_pb2.Cut(), FIXED, grain_pb2.Cut(top_db=100)])
def test_preview_is_short(cut: grain_pb2.Cut) -> None:
    library = built(np.float32(50) * np.tile(scale_of_tones(), 12), cut)

    heard = preview(library)

    assert 8.5 * RATE <= heard.shape[1] <= 10 * RATE
    assert np.abs(heard).max() <= 1


@pytest.mark.parametrize("turned", [1, -1])
def test_one_long_grain_is_measured_as_a_short_one_is(monkeypatch: pytest.MonkeyPatch, turned: int) -> None:
    tone = sawtooth(220, 12)
    samples = np.stack([tone, turned * 0.5 * tone])
    samples[:, : RATE // 4] *= 0.01
    pauses: list[float] = []

    library = build(samples, RATE, grain_pb2.Cut(top_db=100), pauses.append)

    assert len(library) == 1
    assert len(pauses) >= 6
    monkeypatch.setattr(building, "_SECONDS_AT_ONCE", 30.0)
    whole = built(samples, grain_pb2.Cut(top_db=100))
    for name in ("pitches", "rms", "peaks", "brightness", "attacks", "onsets"):
        np.testing.assert_allclose(getattr(library, name), getattr(whole, name), rtol=1e-6)


def test_memory_of_one_long_grain() -> None:
    """Less than the sound itself takes: no second copy of it."""
    samples = np.tile(np.stack([sawtooth(220, 10)] * 2), 12)
    tracemalloc.start()
    try:
        built(samples, grain_pb2.Cut(top_db=100))
        assert tracemalloc.get_traced_memory()[1] < 0.5 * samples.nbytes + 60_000_000
    finally:
        tracemalloc.stop()


def test_what_is_constant_is_not_measured() -> None:
    samples = scale_of_tones()

    library, other = built(samples), built(samples + np.float32(0.008))

    for name in ("lengths", "attacks", "onsets"):
        np.testing.assert_array_equal(getattr(other, name), getattr(library, name))
    assert other.pitches == pytest.approx(library.pitches, rel=1e-3)
    assert other.peaks == pytest.approx(library.peaks, rel=0.005)
    assert other.brightness == pytest.approx(library.brightness, rel=0.01)
