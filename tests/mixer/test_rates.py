"""Inputs of other rates than the mix's."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest
from contrafact.engine.v1.mixer_pb2 import MixInput, MixRequest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.media.blocks import Block
from servers.media.resample import Resampler, resampled_frames
from servers.mixer.mixing import Mixing
from servers.mixer.placing import placements
from servers.orchestrator.engines.mixer import Mixer
from tests.media.signals import RATE, Samples, noise, sine
from tests.mixer.conftest import MixerProcess
from tests.mixer.signals import spec_of, whole_mix
from tests.mixer.test_client import collected
from tests.mixer.test_server import refusal


def resampled(samples: Samples, source: int, target: int) -> Samples:
    resampler = Resampler(source, target, channels=len(samples))
    return np.concatenate([resampler.process(samples), resampler.finish()], axis=1)


RATES = [(48_000, RATE), (RATE, 48_000), (22_050, RATE), (1000, 8000), (384_000, 8000), (1000, 384_000)]


@pytest.mark.parametrize(("rate", "mix_rate"), RATES)
def test_an_input_is_resampled_in_place(rate: int, mix_rate: int) -> None:
    samples = noise(1.23, -20, seed=1, rate=rate)
    whole = resampled(samples, rate, mix_rate)
    offset = mix_rate // 3
    spec = spec_of(
        MixInput(sample_rate=rate, frames=samples.shape[1], offset=offset), frames=2 * mix_rate, rate=mix_rate
    )
    mix, _ = whole_mix(spec, [samples])
    end = offset + resampled_frames(samples.shape[1], rate, mix_rate)
    assert not mix[:, :offset].any()
    np.testing.assert_array_equal(mix[:, offset:end], whole[:, : end - offset])
    assert not mix[:, end:].any()


def test_resampled_inputs_line_up() -> None:
    """The same sine from three rates is one sine, three times as loud."""
    rates = (48_000, 22_050, 96_000)
    spec = spec_of(*(MixInput(sample_rate=rate, frames=2 * rate) for rate in rates), frames=2 * RATE)
    mix, _ = whole_mix(spec, [sine(997, 2, -20, rate=rate) for rate in rates])
    inner = slice(RATE // 10, -RATE // 10)
    np.testing.assert_allclose(mix[:, inner], 3 * sine(997, 2, -20)[:, inner], atol=1e-5)


@pytest.mark.parametrize("offset", [-30_000, -1, 20_000])
def test_what_is_beyond_the_mix_is_not_waited_for(offset: int) -> None:
    samples = noise(10, -20, seed=1, rate=48_000, channels=1)
    asked = MixInput(sample_rate=48_000, frames=samples.shape[1], offset=offset, channels=1)
    spec = spec_of(asked, frames=RATE, channels=1)
    (placement,) = placements(spec)
    assert placement.needed < 3 * 48_000
    whole = np.pad(resampled(samples, 48_000, RATE), ((0, 0), (max(0, offset), 0)))[:, max(0, -offset) :][:, :RATE]
    for sent in (placement.needed, samples.shape[1]):
        mixing = Mixing(spec)
        mixing.add(0, 0, samples[:, :sent])
        mix = np.concatenate(list(mixing.mixed()), axis=1)
        np.testing.assert_allclose(mix, whole, atol=1e-6)
        mixing.report()


@settings(max_examples=20, deadline=None)
@given(
    rate=st.sampled_from([1000, 16_000, 44_100, 48_000, 50_123]),
    offset=st.integers(-8000, 8000),
    frames=st.integers(1, 20_000),
    cuts=st.lists(st.integers(1, 20_000), max_size=8),
)
def test_no_bit_depends_on_cuts(rate: int, offset: int, frames: int, cuts: list[int]) -> None:
    samples = noise(frames / rate, -20, seed=1, rate=rate, channels=1)
    asked = MixInput(sample_rate=rate, frames=frames, offset=offset, channels=1, fade_in_frames=100)
    spec = spec_of(asked, frames=10_000, rate=11_025)
    mix, report = whole_mix(spec, [samples], [cuts])
    again, same_report = whole_mix(spec, [samples])
    np.testing.assert_array_equal(mix, again)
    assert report == same_report
    assert mix.shape == (2, 10_000)


def test_loudness_of_other_rates_and_channels_is_matched() -> None:
    own, reference = sine(500, 6, -26, rate=48_000), sine(500, 6, -20, rate=22_050)[:1]
    spec = spec_of(
        MixInput(loudness_reference="b", sample_rate=48_000, frames=own.shape[1]),
        MixInput(reference_only=True, sample_rate=22_050, channels=1, frames=reference.shape[1]),
        frames=6 * RATE,
    )
    _, report = whole_mix(spec, [own, reference])
    # Measured as they are sent: a sine in both channels is 3 dB louder than in one.
    assert report.matches[0].last_gain_db == pytest.approx(6.0 - 3.01, abs=0.05)


async def cut(samples: Samples, rate: int, size: int) -> AsyncIterator[Block]:
    for start in range(0, samples.shape[1], size):
        yield Block(samples[:, start : start + size], rate, start)


async def test_over_the_wire(mixer: MixerProcess) -> None:
    first, second = noise(3, -20, seed=1, rate=48_000), noise(3, -20, seed=2, channels=1)
    spec = spec_of(
        MixInput(sample_rate=48_000, frames=first.shape[1]), MixInput(channels=1, offset=500), frames=3 * RATE
    )
    given = {"a": cut(first, 48_000, 7000), "b": cut(second, RATE, 9999)}
    async with Mixer(mixer.settings, read_ahead_seconds=0.05) as client:
        mix, report = await collected(client.mix(spec, given))
        wrong = {"a": cut(second, RATE, 9999), "b": cut(second, RATE, 9999)}
        with pytest.raises(ValueError, match="a: 1 channels of 44100 Hz are not what was announced"):
            await collected(client.mix(spec, wrong))
    expected, expected_report = whole_mix(spec, [first, second])
    np.testing.assert_array_equal(mix, expected)
    assert report == expected_report


async def test_an_input_of_another_rate_says_how_long_it_is(mixer: MixerProcess) -> None:
    spec = spec_of(MixInput(sample_rate=48_000), frames=RATE)
    with pytest.raises(ValueError, match="a: an input of another rate"):
        whole_mix(spec, [None])
    _, reason, fields, _ = await refusal(mixer, MixRequest(spec=spec))
    assert (reason, fields) == ("INVALID_FIELD", ["spec.inputs"])
    spec.inputs[0].sample_rate = 999
    _, reason, fields, _ = await refusal(mixer, MixRequest(spec=spec))
    assert (reason, fields) == ("INVALID_FIELD", ["spec.inputs[0].sample_rate"])
