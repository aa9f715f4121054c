"""Streaming conversion equals converting at once, has exact lengths and no delay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.media.blocks import Block
from servers.media.resample import QUALITY, Resampler, resample, resampled_frames

RATES = [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000, 384_000]


def noise(channels: int, frames: int) -> np.ndarray:
    return (0.2 * np.random.default_rng(frames).standard_normal((channels, frames))).astype(np.float32)


async def stream(samples: np.ndarray, rate: int, cuts: list[int], start: int = 0) -> AsyncIterator[Block]:
    edges = [0, *sorted(min(cut, samples.shape[1]) for cut in cuts), samples.shape[1]]
    for a, b in pairwise(edges):
        yield Block(samples[:, a:b], rate, start + a)


async def collect(blocks: AsyncIterator[Block]) -> tuple[np.ndarray, list[Block]]:
    parts = [block async for block in blocks]
    return np.concatenate([part.samples for part in parts], axis=1), parts


@pytest.mark.parametrize("source", RATES)
@pytest.mark.parametrize("target", [44_100, 48_000])
async def test_equals_one_shot(source: int, target: int) -> None:
    samples = noise(2, 30_001)
    ours, parts = await collect(resample(stream(samples, source, [1, 5_000, 20_000]), target))
    expected = samples if source == target else soxr.resample(samples.T, source, target, quality=QUALITY).T
    assert ours.shape == (2, resampled_frames(30_001, source, target))
    np.testing.assert_allclose(ours, expected, atol=2e-6)
    assert all(part.sample_rate == target for part in parts)
    assert [part.start for part in parts][1:] == [part.end for part in parts][:-1]


def test_has_no_delay() -> None:
    source, target, frames = 48_000, 44_100, 96_000
    resampler = Resampler(source, target, channels=1)
    wave = np.sin(2 * np.pi * 997 * np.arange(frames) / source).astype(np.float32)[None]
    ours = np.concatenate([resampler.process(wave), resampler.finish()], axis=1)[0]
    expected = np.sin(2 * np.pi * 997 * np.arange(ours.size) / target)
    middle = slice(2_000, -2_000)
    assert np.abs(ours[middle] - expected[middle]).max() < 1e-5


@settings(max_examples=40, deadline=None)
@given(
    frames=st.integers(1, 20_000),
    cuts=st.lists(st.integers(0, 20_000), max_size=6),
    rates=st.sampled_from([(48_000, 44_100), (44_100, 48_000), (8_000, 44_100), (96_000, 22_050), (44_101, 44_100)]),
)
def test_cuts_do_not_matter(frames: int, cuts: list[int], rates: tuple[int, int]) -> None:
    samples = noise(1, frames)
    wanted = resampled_frames(frames, *rates)
    if wanted == 0:
        return

    async def both() -> None:
        whole, _ = await collect(resample(stream(samples, rates[0], []), rates[1]))
        ours, _ = await collect(resample(stream(samples, rates[0], cuts), rates[1], frames=wanted))
        assert ours.shape[1] == wanted
        np.testing.assert_allclose(ours, whole[:, :wanted], atol=2e-6)

    asyncio.run(both())


@pytest.mark.parametrize("extra", [-3, -1, 0, 1, 3])
async def test_frames_trim_and_pad(extra: int) -> None:
    samples = noise(1, 10_000)
    natural = resampled_frames(10_000, 48_000, 44_100)
    whole, _ = await collect(resample(stream(samples, 48_000, []), 44_100))
    ours, _ = await collect(resample(stream(samples, 48_000, [7]), 44_100, frames=natural + extra))
    assert ours.shape[1] == natural + extra
    shared = natural + min(extra, 0)
    np.testing.assert_allclose(ours[:, :shared], whole[:, :shared], atol=2e-6)
    assert not ours[:, natural:].any()


async def test_wrong_streams_are_refused() -> None:
    with pytest.raises(ValueError, match="asked"):
        await collect(resample(stream(noise(1, 1_000), 48_000, []), 44_100, frames=5_000))

    async def changing() -> AsyncIterator[Block]:
        yield Block(noise(1, 10), 48_000, 0)
        yield Block(noise(2, 10), 48_000, 10)

    with pytest.raises(ValueError, match="one number of channels"):
        await collect(resample(changing(), 44_100))


async def test_equal_rates_pass_through_and_positions_scale() -> None:
    samples = noise(2, 100)
    ours, parts = await collect(resample(stream(samples, 48_000, [50], start=960), 48_000))
    np.testing.assert_array_equal(ours, samples)
    assert parts[0].start == 960
    _, parts = await collect(resample(stream(noise(2, 9_000), 48_000, [], start=96_000), 44_100))
    assert parts[0].start == 88_200


@given(st.integers(0, 10**12), st.integers(1, 10**6), st.integers(1, 10**6))
def test_resampled_frames_rounds_half_up(frames: int, source: int, target: int) -> None:
    exact = Fraction(frames * target, source)
    error = resampled_frames(frames, source, target) - exact
    assert -Fraction(1, 2) < error <= Fraction(1, 2)
