"""Whole mixes, without a server: sums, gains, loudness matching, what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from contrafact.engine.v1.mixer_pb2 import MixInput
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.mixer.mixing import MAX_SAMPLE, Mixing, Refused
from tests.media.signals import RATE, Samples, noise, sine
from tests.mixer.signals import spec_of, whole_mix


def test_one_input_passes_unchanged() -> None:
    samples = noise(1.234, -10, seed=1)
    mix, report = whole_mix(spec_of(MixInput(), frames=samples.shape[1]), [samples])
    np.testing.assert_array_equal(mix, samples)
    assert report.max_gain_reduction_db == 0.0
    assert not report.matches


@pytest.mark.parametrize("ceiling", [None, 0.0])
def test_sum_of_gained_inputs(ceiling: float | None) -> None:
    inputs = [noise(2, -40, seed=seed) for seed in range(3)]
    spec = spec_of(MixInput(gain_db=6), MixInput(gain_db=-60), MixInput(), frames=2 * RATE)
    if ceiling is not None:
        spec.true_peak_ceiling_db = ceiling
    mix, _ = whole_mix(spec, inputs)
    first, second, third = (samples.astype(np.float64) for samples in inputs)
    expected = first * 10 ** (6 / 20) + second * 10 ** (-60 / 20) + third
    np.testing.assert_array_equal(mix, expected.astype(np.float32))


def test_references_are_not_heard() -> None:
    inputs = [noise(2, -20, seed=1), noise(2, 0, seed=2)]
    mix, _ = whole_mix(spec_of(MixInput(), MixInput(reference_only=True), frames=2 * RATE), inputs)
    np.testing.assert_array_equal(mix, inputs[0])


def test_the_report_is_of_what_came_out() -> None:
    spec = spec_of(MixInput(gain_db=12), frames=10 * RATE)
    spec.true_peak_ceiling_db = -6.0
    mix, report = whole_mix(spec, [sine(997, 10, -12)])
    assert np.abs(mix).max() == pytest.approx(10 ** (-6 / 20), rel=1e-3)
    assert report.integrated_lufs == pytest.approx(-6.0, abs=0.1)
    assert report.true_peak_db == pytest.approx(-6.0, abs=0.02)
    assert report.max_gain_reduction_db == pytest.approx(6.0, abs=0.02)


def test_report_of_silence() -> None:
    _, report = whole_mix(spec_of(MixInput(), frames=RATE), [np.zeros((2, RATE), np.float32)])
    assert not report.HasField("integrated_lufs")
    assert not report.HasField("true_peak_db")


def matched(own: Samples, reference: Samples) -> tuple[Samples, tuple[float, float, float]]:
    """The input with the reference's loudness, and the lowest, highest and last gain."""
    vocals = MixInput(name="new", loudness_reference="old")
    spec = spec_of(vocals, MixInput(name="old", reference_only=True), frames=own.shape[1])
    mix, report = whole_mix(spec, [own, reference])
    (match,) = report.matches
    assert match.input == "new"
    return mix, (match.min_gain_db, match.max_gain_db, match.last_gain_db)


@pytest.mark.parametrize("difference", [-9.0, -0.5, 0.0, 8.0])
def test_a_constant_difference_is_there_from_the_start(difference: float) -> None:
    own = sine(997, 6, -20)
    mix, gains = matched(own, sine(500, 6, -20) * np.float32(0) + sine(997, 6, -20 + difference))
    np.testing.assert_allclose(gains, difference, atol=1e-3)
    np.testing.assert_allclose(mix, own * 10 ** (difference / 20), atol=1e-4)


@pytest.mark.parametrize(("difference", "limit"), [(30.0, 12.0), (-30.0, -12.0)])
def test_gains_are_bounded(difference: float, limit: float) -> None:
    _, gains = matched(sine(997, 6, -30), sine(997, 6, -30 + difference))
    np.testing.assert_allclose(gains, limit)


def test_the_gain_has_moved_before_singing_begins() -> None:
    silence = np.zeros((2, 5 * RATE), np.float32)
    own = np.concatenate([silence, sine(997, 5, -26)], axis=1)
    mix, (lowest, highest, last) = matched(own, np.concatenate([silence, sine(997, 5, -20)], axis=1))
    assert (lowest, highest, last) == pytest.approx((0.0, 6.0, 6.0), abs=0.05)
    sung = slice(round(5.1 * RATE), None)
    np.testing.assert_allclose(mix[:, sung], own[:, sung] * 10 ** (6 / 20), atol=1e-3)


def test_the_gain_is_held_in_silence_and_where_there_is_no_reference() -> None:
    silence, own = np.zeros((2, 10 * RATE), np.float32), sine(997, 10, -26)
    reference = np.concatenate([sine(997, 10, -20), silence], axis=1)
    _, gains = matched(np.concatenate([own, silence], axis=1), reference)
    np.testing.assert_allclose(gains, 6.0, atol=0.2)
    mix, gains = matched(own, silence)
    assert gains == (0.0, 0.0, 0.0)
    np.testing.assert_array_equal(mix, own)


def test_the_gain_moves_slowly_and_smoothly() -> None:
    own = np.concatenate([sine(997, 8, -26), sine(997, 8, -10)], axis=1)
    mix, (lowest, highest, _) = matched(own, sine(997, 16, -20))
    assert highest - lowest > 3
    loud = np.abs(own[0]) > 1e-3
    gain = 20 * np.log10(mix[0, loud] / own[0, loud])
    steps = np.diff(gain) / np.diff(np.flatnonzero(loud))
    assert np.abs(steps).max() < 1.1 * 6 / RATE + 1e-3  # 6 dB a second, and what float32 rounds


lengths = st.integers(1, 4 * RATE)
cuts = st.lists(lengths, max_size=12)


@settings(max_examples=20, deadline=None)
@given(frames=lengths, cuts=st.tuples(cuts, cuts, cuts))
def test_no_bit_depends_on_cuts(frames: int, cuts: tuple[list[int], list[int], list[int]]) -> None:
    level = np.abs(sine(0.4, 4, 0))
    inputs = [noise(4, -10 + 6 * seed, seed=seed) * level for seed in range(3)]
    inputs = [samples[:, :frames] for samples in inputs]
    spec = spec_of(MixInput(loudness_reference="c"), MixInput(gain_db=3), MixInput(reference_only=True), frames=frames)
    spec.true_peak_ceiling_db = -1.0
    mix, report = whole_mix(spec, inputs)
    assert mix.shape == (2, frames)
    again, same_report = whole_mix(spec, inputs, cuts)
    np.testing.assert_array_equal(mix, again)
    assert report == same_report


@pytest.mark.parametrize("rate", [8_000, 11_025, 48_000, 384_000])
def test_rates_and_mono(rate: int) -> None:
    samples = noise(1.2345, -20, seed=1, rate=rate, channels=1)
    spec = spec_of(MixInput(), frames=samples.shape[1], rate=rate, channels=1)
    spec.true_peak_ceiling_db = 0.0
    np.testing.assert_array_equal(whole_mix(spec, [samples])[0], samples)


def test_the_mix_comes_as_soon_as_it_is_known() -> None:
    spec = spec_of(MixInput(), MixInput(), frames=10 * RATE)
    mixing, second = Mixing(spec), np.zeros((2, RATE), np.float32)
    mixing.add(0, 0, second)
    assert list(mixing.mixed()) == []
    mixing.add(1, 0, second)
    assert sum(part.shape[1] for part in mixing.mixed()) == RATE == mixing.position


@pytest.mark.parametrize(
    ("place", "start", "samples", "reason", "field"),
    [
        (2, 0, np.zeros((2, 5)), "UNKNOWN_INPUT", "input"),
        (0, 0, np.zeros((2, 5)), "WRONG_START", "start"),
        (0, 101, np.zeros((2, 5)), "WRONG_START", "start"),
        (0, 100, np.zeros((2, 100 * RATE)), "TOO_MANY_FRAMES", "samples"),
        (0, 100, np.zeros((2, 61 * RATE)), "RAN_AHEAD", ""),
        (0, 100, np.array([[0, 0, 0], [0, np.nan, 0]]), "INVALID_SAMPLES", "samples"),
        (0, 100, np.array([[0, np.inf, 0], [0, 0, 0]]), "INVALID_SAMPLES", "samples"),
        (0, 100, np.array([[0, 0, 0], [0, -np.inf, 0]]), "INVALID_SAMPLES", "samples"),
        (0, 100, np.array([[0, 0, 2 * MAX_SAMPLE], [0, 0, 0]]), "INVALID_SAMPLES", "samples"),
    ],
)
def test_what_does_not_fit_is_refused(place: int, start: int, samples: np.ndarray, reason: str, field: str) -> None:
    mixing = Mixing(spec_of(MixInput(), MixInput(), frames=100 * RATE))
    mixing.add(0, 0, np.zeros((2, 100), np.float32))
    with pytest.raises(Refused) as refusal:
        mixing.add(place, start, samples.astype(np.float32))
    assert (refusal.value.reason, refusal.value.field) == (reason, field)
    mixing.add(0, 100, np.zeros((2, 1), np.float32))


def test_a_mix_that_is_not_whole_has_no_report() -> None:
    mixing = Mixing(spec_of(MixInput(), MixInput(), frames=100))
    mixing.add(0, 0, np.zeros((2, 100), np.float32))
    mixing.add(1, 0, np.zeros((2, 99), np.float32))
    with pytest.raises(Refused) as refusal:
        mixing.report()
    assert (refusal.value.reason, refusal.value.facts) == ("TOO_FEW_FRAMES", {"input": 1, "received": 99})


def test_the_loudest_legal_input_stays_finite() -> None:
    frames = RATE
    loud = np.full((2, frames), MAX_SAMPLE, np.float32)
    spec = spec_of(*(MixInput(gain_db=24) for _ in range(16)), frames=frames)
    spec.true_peak_ceiling_db = -1.0
    mix, report = whole_mix(spec, [loud] * 16)
    assert np.isfinite(mix).all()
    assert report.true_peak_db <= -0.9
