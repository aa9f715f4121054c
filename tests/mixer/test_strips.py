"""What an input's own settings do: where it lies, how long, how loud on either side, whether it is heard at all."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest
from contrafact.engine.v1.mixer_pb2 import MixInput, MixSpec
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.media.blocks import Block
from servers.mixer.mixing import Mixing, Refused
from servers.mixer.placing import read_ahead_frames
from servers.orchestrator.engines.mixer import Mixer
from tests.media.signals import RATE, Samples, noise, sine
from tests.mixer.conftest import MixerProcess
from tests.mixer.signals import spec_of, whole_mix
from tests.mixer.test_client import blocks, collected

SECOND = noise(1, -12, seed=1)
MONO = noise(1, -12, seed=2, channels=1)


def expected(spec: MixSpec, inputs: list[Samples | None]) -> np.ndarray:
    """The mix as one would write it down: whole arrays, every rule of the proto after the other."""
    soloed = any(asked.solo for asked in spec.inputs)
    mix = np.zeros((spec.channels, spec.frames))
    for asked, samples in zip(spec.inputs, inputs, strict=True):
        if samples is None or asked.muted or (soloed and not asked.solo):
            continue
        wave = samples.astype(np.float64)
        frames, at = wave.shape[1], np.arange(wave.shape[1]) + 0.5
        if asked.fade_in_frames:
            wave *= np.sin(np.pi / 2 * np.minimum(1, at / asked.fade_in_frames))
        heard_end = min(frames, spec.frames - asked.offset)
        if asked.fade_out_frames:
            wave *= np.sin(np.pi / 2 * np.clip((heard_end - at) / asked.fade_out_frames, 0, 1))
        if spec.channels == 1:
            wave = wave.mean(axis=0, keepdims=True)
        elif len(wave) == 1:
            angle = (1 + asked.pan) * np.pi / 4
            wave = np.sqrt(2) * np.concatenate([np.cos(angle) * wave, np.sin(angle) * wave])
        else:
            wave[0 if asked.pan > 0 else 1] *= 1 - abs(asked.pan)
        for frame in range(max(0, -asked.offset), max(0, heard_end)):
            mix[:, asked.offset + frame] += wave[:, frame] * 10 ** (asked.gain_db / 20)
    return mix * 10 ** (spec.gain_db / 20)


numbers = st.floats(-1, 1).map(lambda value: round(value, 3))


@st.composite
def strips(draw: st.DrawFn, frames: int) -> MixInput:
    return MixInput(
        gain_db=draw(st.integers(-20, 10)),
        pan=draw(numbers),
        muted=draw(st.integers(0, 4)) == 0,
        solo=draw(st.integers(0, 4)) == 0,
        fade_in_frames=draw(st.sampled_from([0, 1, 77, 3000])),
        fade_out_frames=draw(st.sampled_from([0, 1, 99, 5000])),
        offset=draw(st.integers(-frames, frames)),
        channels=draw(st.integers(0, 2)),
        frames=draw(st.integers(1, 2 * frames)),
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data(), channels=st.integers(1, 2), gain=st.sampled_from([0.0, -6.5]))
def test_everything_at_once_is_as_written_down(data: st.DataObject, channels: int, gain: float) -> None:
    rate, frames = 8000, 9000  # chunks of 4000 frames
    asked = data.draw(st.lists(strips(frames), min_size=1, max_size=4))
    spec = spec_of(*asked, frames=frames, rate=rate, channels=channels)
    spec.gain_db = gain
    inputs = [
        noise(each.frames / rate, -20, seed=seed, rate=rate, channels=each.channels or channels)
        for seed, each in enumerate(spec.inputs)
    ]
    cuts = [data.draw(st.lists(st.integers(1, 2 * frames), max_size=4)) for _ in inputs]
    mix, report = whole_mix(spec, inputs, cuts)
    np.testing.assert_allclose(mix, expected(spec, list(inputs)), atol=1e-6)
    np.testing.assert_array_equal(mix, whole_mix(spec, inputs)[0])
    assert report.peak == np.abs(mix).max()


@pytest.mark.parametrize("pan", [-1.0, -0.4, 0.0, 0.7, 1.0])
def test_a_mono_input_has_constant_power(pan: float) -> None:
    mix, _ = whole_mix(spec_of(MixInput(pan=pan, channels=1), frames=RATE), [MONO])
    np.testing.assert_allclose((mix**2).sum(axis=0), 2 * MONO[0] ** 2, rtol=1e-5)
    if pan == 0:
        np.testing.assert_array_equal(mix, np.repeat(MONO, 2, axis=0))
    if abs(pan) == 1:
        assert not mix[0 if pan > 0 else 1].any()


def test_balance_leaves_the_near_side_as_it_is() -> None:
    left, _ = whole_mix(spec_of(MixInput(pan=-0.25), frames=RATE), [SECOND])
    np.testing.assert_array_equal(left, (SECOND * np.array([[1.0], [0.75]])).astype(np.float32))
    right, _ = whole_mix(spec_of(MixInput(pan=1), frames=RATE), [SECOND])
    np.testing.assert_array_equal(right, SECOND * np.array([[0], [1]], np.float32))


def test_a_mono_mix_knows_no_sides() -> None:
    spec = spec_of(MixInput(channels=2, pan=1), MixInput(pan=-1), frames=RATE, channels=1)
    mix, _ = whole_mix(spec, [SECOND, MONO])
    np.testing.assert_allclose(mix, SECOND.mean(axis=0, keepdims=True) + MONO, atol=1e-7)


def test_crossfades_have_constant_power() -> None:
    """Of two inputs that have nothing in common, so their powers add up: here one on each side."""
    length, frames = 30_000, 2 * RATE
    one = np.ones((2, frames), np.float32)
    spec = spec_of(
        MixInput(pan=-1, frames=RATE + length, fade_out_frames=length),
        MixInput(pan=1, offset=RATE, frames=frames - RATE, fade_in_frames=length),
        frames=frames,
    )
    mix, _ = whole_mix(spec, [one[:, : RATE + length], one[:, RATE:]])
    np.testing.assert_allclose((mix**2).sum(axis=0), 1.0, atol=1e-6)
    np.testing.assert_allclose(mix[0, RATE : RATE + length], mix[1, RATE : RATE + length][::-1], atol=1e-6)


def test_a_fade_out_ends_with_the_mix() -> None:
    one = np.ones((2, 3 * RATE), np.float32)
    spec = spec_of(MixInput(offset=-RATE, frames=3 * RATE, fade_out_frames=100), frames=RATE)
    mix, _ = whole_mix(spec, [one])
    np.testing.assert_array_equal(mix[:, :-100], 1.0)
    np.testing.assert_allclose(mix[0, -100:] ** 2 + mix[0, -100:][::-1] ** 2, 1.0, atol=1e-6)


def test_what_is_not_heard_need_not_come() -> None:
    spec = spec_of(
        MixInput(solo=True),
        MixInput(),
        MixInput(solo=True, muted=True),
        MixInput(solo=True, offset=RATE),
        MixInput(solo=True, offset=-RATE),
        MixInput(reference_only=True, solo=True),
        frames=RATE,
    )
    mix, _ = whole_mix(spec, [SECOND, *[None] * 5])
    np.testing.assert_array_equal(mix, SECOND)


def test_a_soloed_reference_silences_nobody() -> None:
    spec = spec_of(MixInput(), MixInput(reference_only=True, solo=True), frames=RATE)
    np.testing.assert_array_equal(whole_mix(spec, [SECOND, None])[0], SECOND)


def test_what_is_not_heard_may_come_and_is_checked() -> None:
    spec = spec_of(MixInput(), MixInput(muted=True, frames=100 * RATE), frames=RATE)
    mixing = Mixing(spec)
    for start in range(100):  # however far ahead
        mixing.add(1, start * RATE, SECOND)
    for start, samples, reason in ((0, SECOND, "WRONG_START"), (100 * RATE, SECOND, "TOO_MANY_FRAMES")):
        with pytest.raises(Refused) as refusal:
            mixing.add(1, start, samples)
        assert refusal.value.reason == reason
    mixing = Mixing(spec)
    with pytest.raises(Refused, match="not finite"):
        mixing.add(1, 0, SECOND * np.nan)
    mixing.add(0, 0, SECOND)
    np.testing.assert_array_equal(np.concatenate(list(mixing.mixed()), axis=1), SECOND)
    mixing.report()


def test_nothing_heard_is_silence() -> None:
    mix, report = whole_mix(spec_of(MixInput(muted=True), frames=RATE + 7), [None])
    assert mix.shape == (2, RATE + 7)
    assert not mix.any()
    assert not report.HasField("integrated_lufs")


def test_a_muted_reference_is_needed_and_not_heard() -> None:
    own, reference = sine(997, 6, -20), sine(997, 6, -14)
    spec = spec_of(MixInput(loudness_reference="b"), MixInput(muted=True), frames=6 * RATE)
    mix, report = whole_mix(spec, [own, reference])
    assert report.matches[0].last_gain_db == pytest.approx(6.0, abs=1e-3)
    np.testing.assert_allclose(mix, own * 10 ** (6 / 20), atol=1e-4)
    with pytest.raises(Refused) as refusal:
        whole_mix(spec, [own, None])
    assert (refusal.value.reason, refusal.value.facts) == ("TOO_FEW_FRAMES", {"input": 1, "received": 0})
    spec.inputs[0].muted = True
    spec.inputs[1].muted = False
    mix, report = whole_mix(spec, [None, reference])
    np.testing.assert_array_equal(mix, reference)
    assert not report.matches


def test_loudness_is_matched_where_inputs_lie() -> None:
    """The reference begins 3 s later, and its input 4 s: both are silent before."""
    own, reference = sine(997, 6, -20), sine(997, 7, -14)
    spec = spec_of(
        MixInput(loudness_reference="b", offset=4 * RATE, frames=6 * RATE),
        MixInput(gain_db=-60, offset=3 * RATE, frames=7 * RATE),
        frames=10 * RATE,
    )
    mix, _ = whole_mix(spec, [own, reference])
    np.testing.assert_allclose(mix[:, 5 * RATE :], own[:, RATE:] * 10 ** (6 / 20), atol=3e-3)


def test_a_reference_begins_with_the_mix() -> None:
    own, reference = sine(997, 4, -20), sine(997, 4, -14)
    asked = MixInput(reference_only=True, offset=10 * RATE, muted=True)
    _, report = whole_mix(spec_of(MixInput(loudness_reference="b"), asked, frames=4 * RATE), [own, reference])
    assert report.matches[0].last_gain_db == pytest.approx(6.0, abs=1e-3)


def test_nobody_waits_for_what_is_not_heard() -> None:
    """Of a short input silence follows, and of a long one what is beyond the end is not waited for."""
    spec = spec_of(MixInput(frames=100), MixInput(offset=-RATE, frames=10 * RATE), frames=2 * RATE)
    mixing = Mixing(spec)
    mixing.add(0, 0, SECOND[:, :100])
    zeros = np.zeros((2, RATE), np.float32)
    for start in range(2):
        mixing.add(1, start * RATE, zeros)
    assert sum(part.shape[1] for part in mixing.mixed()) == RATE
    mixing.add(1, 2 * RATE, zeros)
    assert sum(part.shape[1] for part in mixing.mixed()) == RATE
    mixing.report()


def test_silence_before_the_first_input_comes_at_once() -> None:
    mixing = Mixing(spec_of(MixInput(offset=10 * RATE, frames=RATE), frames=11 * RATE))
    assert sum(part.shape[1] for part in mixing.mixed()) == 10 * RATE


def test_who_lies_ahead_comes_later() -> None:
    spec = spec_of(MixInput(), MixInput(offset=100 * RATE, frames=RATE), frames=200 * RATE)
    mixing = Mixing(spec)
    with pytest.raises(Refused) as refusal:
        mixing.add(1, 0, SECOND)
    assert refusal.value.reason == "RAN_AHEAD"
    assert refusal.value.facts == {"input": 1, "slowest": 0, "limit": 60 * RATE}
    for start in range(41):
        mixing.add(0, start * RATE, SECOND)
    mixing.add(1, 0, SECOND)
    spec.inputs[1].muted = True
    Mixing(spec).add(1, 0, SECOND)  # it is dropped


def test_what_lies_before_the_mix_holds_nobody_up() -> None:
    spec = spec_of(MixInput(), MixInput(offset=-100 * RATE, frames=101 * RATE), frames=RATE)
    mixing = Mixing(spec)
    mixing.add(0, 0, SECOND)
    for start in range(101):
        mixing.add(1, start * RATE, SECOND)
    np.testing.assert_array_equal(np.concatenate(list(mixing.mixed()), axis=1), 2 * SECOND)


def test_many_inputs_share_the_room() -> None:
    inputs = [MixInput(name=f"i{place}") for place in range(64)]
    spec = spec_of(*inputs, frames=100 * RATE)
    assert read_ahead_frames(spec) == 2**20
    mixing = Mixing(spec)
    mixing.add(63, 0, np.zeros((2, 2**20), np.float32))
    with pytest.raises(Refused, match="1048576 frames ahead"):
        mixing.add(63, 2**20, SECOND)
    samples = [noise(1, -40, seed=seed) for seed in range(64)]
    mix, _ = whole_mix(spec_of(*inputs, frames=RATE), samples)
    np.testing.assert_allclose(mix, np.sum(samples, axis=0, dtype=np.float64), atol=1e-6)


async def forbidden() -> AsyncIterator[Block]:
    raise AssertionError("this is not heard")
    yield


async def test_the_client_reads_what_is_heard(mixer: MixerProcess) -> None:
    read = 0

    async def long() -> AsyncIterator[Block]:
        nonlocal read
        for second in range(1000):
            read += 1
            yield Block(SECOND, RATE, second * RATE)

    spec = spec_of(
        MixInput(name="long", frames=1000 * RATE, offset=-RATE // 2, channels=2),
        MixInput(name="muted", muted=True),
        MixInput(name="late", offset=3 * RATE),
        MixInput(name="mono", channels=1, frames=RATE, offset=RATE),
        frames=3 * RATE,
    )
    given: dict = {"long": long(), "muted": forbidden(), "mono": blocks(MONO)}
    async with Mixer(mixer.settings, read_ahead_seconds=1.0) as client:
        mix, report = await collected(client.mix(spec, given))
        wrong = {"mono": blocks(SECOND), "long": long()}
        with pytest.raises(ValueError, match="mono: 2 channels of 44100 Hz are not what was announced"):
            await collected(client.mix(spec, wrong))
        for names in ({"long"}, {"long", "mono", "other"}):
            with pytest.raises(ValueError, match="not those of the spec"):
                await collected(client.mix(spec, dict.fromkeys(names, forbidden())))
    assert read <= 8
    again, same_report = whole_mix(spec, [np.tile(SECOND, 4), None, None, MONO])
    np.testing.assert_array_equal(mix, again)
    assert report == same_report


async def test_long_silence_is_streamed(mixer: MixerProcess) -> None:
    frames = 600 * RATE
    before, received = mixer.resident_bytes(), 0
    async with Mixer(mixer.settings) as client:
        async for part in client.mix(spec_of(MixInput(muted=True), frames=frames), {}):
            if isinstance(part, Block):
                received += part.frames
                assert not part.samples.any()
    assert received == frames
    assert mixer.resident_bytes() - before < 60_000_000  # all of it: 212 MB
