"""Separations that begin in the middle of a track, against those that begin at its beginning."""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from servers.inference.keeper import ModelKeeper
from servers.inference.segments import History, Samples, plan
from servers.inference.separation import GEOMETRY, SAMPLE_RATE, Separator, _windows
from servers.inference.triton import Triton
from servers.media.blocks import Block
from servers.orchestrator.pipelines.recordings import SETTLING_FRAMES, first_segment, separated
from servers.platform.settings import Settings
from tests.inference.fake import PLAIN, ComputeLog, blocks, changed, ramp
from tests.orchestrator.test_separation import noise

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
async def separator(triton: Triton, triton_settings: Settings) -> AsyncIterator[Separator]:
    async with ModelKeeper(triton, "htdemucs", triton_settings) as keeper:
        yield Separator(triton, keeper, triton_settings)


async def rest_of(separator: Separator, track: Samples, first: int) -> tuple[int, Samples]:
    """What is made of ``track`` from the segment ``first`` on, and where it begins."""
    stream = separator.separate(blocks(track), track.shape[1], PLAIN, priority=2, request_id="test", first=first)
    parts = [part async for part in stream]
    return parts[0].start, np.concatenate([part.samples for part in parts], axis=-1)


@pytest.mark.parametrize("first", [0, 1, 3, 4])
async def test_from_any_segment_on_the_answer_is_the_same(
    separator: Separator, compute_log: ComputeLog, first: int
) -> None:
    track = ramp(5)
    _, everything = await rest_of(separator, track, 0)
    compute_log.begin()
    start, rest = await rest_of(separator, track, first)
    assert start == first * GEOMETRY.stride
    np.testing.assert_array_equal(rest, everything[..., start:])
    assert len(compute_log.computed()) == 5 - max(0, first - 1)


async def test_the_last_segment_may_be_covered(triton: Triton, triton_settings: Settings) -> None:
    track = ramp(3)  # of the third there are but 1,000 frames
    async with ModelKeeper(triton, "htdemucs", triton_settings) as keeper:
        separator = Separator(triton, keeper, changed(triton_settings, skip_covered_segment=True))
        _, everything = await rest_of(separator, track, 0)
        start, rest = await rest_of(separator, track, 2)
    assert start == 2 * GEOMETRY.stride
    np.testing.assert_array_equal(rest, everything[..., start:])


@pytest.mark.parametrize(
    ("rate", "channels", "seconds"),
    [(44_100, 2, 30), (44_100, 1, 30), (48_000, 2, 30), (22_050, 1, 40), (8_000, 1, 40)],
)
async def test_the_stems_of_a_recording_from_any_frame_on_are_the_same(
    separator: Separator, compute_log: ComputeLog, tmp_path: Path, rate: int, channels: int, seconds: int
) -> None:
    frames = rate * seconds
    samples = noise(frames, channels, seed=rate)
    soundfile.write(tmp_path / "in.wav", samples.T, rate, subtype="FLOAT")
    row: Any = {"sample_rate": rate, "frames": frames, "channels": channels, "mean": 0.01, "std": 0.1}
    run: Any = SimpleNamespace(id=uuid.uuid4(), attempt=1, priority=2)

    async def made(start: int) -> Samples:
        position, parts = start, []
        async for sources in separated(separator, run, row, tmp_path / "in.wav", start=start):
            for block in sources.values():
                assert (block.start, block.channels) == (position, channels)
            parts.append(np.stack([block.samples for block in sources.values()]))
            position = sources["vocals"].end
        assert position == frames
        return np.concatenate(parts, axis=-1)

    everything = await made(0)
    for start in (frames // 2, frames - 5000, frames - 1):
        compute_log.begin()
        rest = await made(start)
        if rate == SAMPLE_RATE:
            np.testing.assert_array_equal(rest, everything[..., start:])
        else:
            np.testing.assert_allclose(rest, everything[..., start:], atol=1e-6, rtol=0)
        segments = math.ceil(seconds * SAMPLE_RATE / GEOMETRY.stride)
        assert len(compute_log.computed()) == segments - max(0, first_segment(start, rate) - 1)
    assert [sources async for sources in separated(separator, run, row, tmp_path / "in.wav", start=frames)] == []


async def test_what_is_passed_over_is_not_kept() -> None:
    total, size = 40 * GEOMETRY.stride, 65_536
    history = History(2, 0.0, 1.0)

    async def track() -> AsyncIterator[Block]:
        for start in range(0, total, size):
            yield Block(np.full((2, min(size, total - start)), start, np.float32), SAMPLE_RATE, start)
            assert history._frames.shape[1] <= GEOMETRY.length + size

    async for segment, window in _windows(track(), plan(total, GEOMETRY, first=38), total, history):
        assert segment.index >= 37
        middle = segment.start + segment.frames // 2
        assert window[0, middle - segment.window] == middle // size * size


@given(st.integers(0, 10**10), st.sampled_from([1_000, 8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 44_099, 384_000]))
def test_the_segment_to_begin_with(frame: int, rate: int) -> None:
    first = first_segment(frame, rate)
    place = first * GEOMETRY.stride * rate
    assert place % SAMPLE_RATE == 0  # a whole frame of the track
    settling = 0 if rate == SAMPLE_RATE else SETTLING_FRAMES
    assert first == 0 or place // SAMPLE_RATE * SAMPLE_RATE <= (frame * SAMPLE_RATE / rate - settling) * rate
    # No later one would do. At the usual rates a segment or two is all that is made twice.
    step = {11_025: 4, 22_050: 2, 1_000: 3, 44_099: 300}.get(rate, 1)
    assert (first + step) * GEOMETRY.stride > frame * SAMPLE_RATE // rate - settling
