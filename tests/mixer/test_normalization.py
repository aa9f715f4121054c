"""Mixes that are to have a level: measured first, then mixed with the gain that was found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contrafact.engine.v1.mixer_pb2 import (
    NORMALIZATION_LUFS,
    NORMALIZATION_PEAK,
    NORMALIZATION_UNSPECIFIED,
    MixInput,
    MixReport,
    MixSpec,
    Normalization,
)

from servers.orchestrator.engines.mixer import Mixer
from tests.media.signals import RATE, Samples, noise, sine
from tests.mixer.conftest import MixerProcess
from tests.mixer.signals import spec_of, whole_mix
from tests.mixer.test_client import blocks

SILENCE = np.zeros((2, RATE), np.float32)


def spec_to(normalization: Normalization.ValueType, frames: int, **values: Any) -> MixSpec:
    spec = spec_of(MixInput(gain_db=3), MixInput(channels=1, pan=0.3), frames=frames)
    spec.MergeFrom(MixSpec(normalization=normalization, **values))
    return spec


def normalized(spec: MixSpec, inputs: list[Samples]) -> tuple[MixReport, Samples, MixReport]:
    """Report of the measurement, and mix and report of the second pass."""
    spec.measure_only = True
    _, measured = whole_mix(spec, inputs)
    spec.measure_only, spec.gain_db = False, measured.gain_db
    return measured, *whole_mix(spec, inputs)


def test_gain_of_the_sum() -> None:
    inputs = [noise(1, -20, seed=1), noise(1, -20, seed=2)]
    spec = spec_of(MixInput(), MixInput(gain_db=-3), frames=RATE)
    spec.gain_db = -7.5
    total = inputs[0] + inputs[1].astype(np.float64) * 10 ** (-3 / 20)
    np.testing.assert_array_equal(whole_mix(spec, inputs)[0], (total * 10 ** (-7.5 / 20)).astype(np.float32))


@pytest.mark.parametrize("level", [-90.0, -40.0, 0.0, 60.0])
@pytest.mark.parametrize("gain", [0.0, 13.3])
def test_the_peak_becomes_one(level: float, gain: float) -> None:
    inputs = [noise(2.2, level, seed=1), noise(2.2, level, seed=2, channels=1)]
    measured, mix, report = normalized(spec_to(NORMALIZATION_PEAK, inputs[0].shape[1], gain_db=gain), inputs)
    assert np.abs(mix).max() == pytest.approx(1.0, abs=1e-6)
    assert report.peak == np.abs(mix).max()
    assert report.gain_db == pytest.approx(measured.gain_db, abs=1e-5)
    assert not measured.HasField("true_peak_db")
    assert not measured.HasField("integrated_lufs")


@pytest.mark.parametrize(("level", "target"), [(-30.0, -14.0), (-5.0, -23.0), (-50.0, -30.0)])
def test_the_loudness_becomes_the_target(level: float, target: float) -> None:
    envelope = np.abs(sine(0.3, 12, 0))
    inputs = [noise(12, level, seed=1) * envelope, noise(12, level - 6, seed=2, channels=1)]
    spec = spec_to(NORMALIZATION_LUFS, 12 * RATE, gain_db=-2.0, target_lufs=target)
    measured, _, report = normalized(spec, inputs)
    assert abs(measured.integrated_lufs - target) > 5
    assert report.integrated_lufs == pytest.approx(target, abs=0.1)
    assert not measured.HasField("true_peak_db")


def test_a_measurement_is_of_what_comes_before_the_limiter() -> None:
    inputs = [sine(997, 2, 6), np.zeros((1, 2 * RATE), np.float32)]
    spec = spec_to(NORMALIZATION_PEAK, 2 * RATE, true_peak_ceiling_db=-6.0)
    measured, mix, report = normalized(spec, inputs)
    assert measured.max_gain_reduction_db == 0.0
    assert measured.gain_db == pytest.approx(-9.0, abs=1e-3)
    assert report.max_gain_reduction_db == pytest.approx(6.0, abs=0.05)
    assert np.abs(mix).max() <= 10 ** (-5.99 / 20)


@pytest.mark.parametrize("normalization", [NORMALIZATION_PEAK, NORMALIZATION_LUFS])
def test_silence_keeps_its_gain(normalization: Normalization.ValueType) -> None:
    spec = spec_to(normalization, RATE, gain_db=-4.0, target_lufs=-14)
    measured, mix, _ = normalized(spec, [SILENCE, SILENCE[:1]])
    assert measured.gain_db == -4.0
    assert not mix.any()


def test_what_is_too_short_to_be_loud_keeps_its_gain() -> None:
    inputs = [noise(0.3, -20, seed=1), noise(0.3, -20, seed=2, channels=1)]
    measured, _, _ = normalized(spec_to(NORMALIZATION_LUFS, inputs[0].shape[1], target_lufs=-14), inputs)
    assert measured.gain_db == 0.0


@pytest.mark.parametrize(("sample", "gain", "reached"), [(1e-9, 0.0, 120.0), (1e6, -100.0, -120.0)])
def test_gains_stay_within_the_rules(sample: float, gain: float, reached: float) -> None:
    measured, _, _ = normalized(
        spec_to(NORMALIZATION_PEAK, RATE, gain_db=gain), [SILENCE + np.float32(sample), SILENCE[:1]]
    )
    assert measured.gain_db == reached


@pytest.mark.parametrize("normalization", [NORMALIZATION_UNSPECIFIED, NORMALIZATION_PEAK, NORMALIZATION_LUFS])
async def test_a_measurement_sends_no_audio(mixer: MixerProcess, normalization: Normalization.ValueType) -> None:
    inputs = {"a": noise(5, -20, seed=1), "b": noise(5, -20, seed=2, channels=1)}
    spec = spec_to(normalization, 5 * RATE, target_lufs=-10.0)
    spec.measure_only = True
    async with Mixer(mixer.settings) as client:
        given = {name: blocks(samples) for name, samples in inputs.items()}
        (report,) = [item async for item in client.mix(spec, given)]
    assert isinstance(report, MixReport)
    assert report == whole_mix(spec, list(inputs.values()))[1]
    assert report.HasField("integrated_lufs") == (normalization != NORMALIZATION_PEAK)
    assert (report.gain_db == 0.0) == (normalization == NORMALIZATION_UNSPECIFIED)
