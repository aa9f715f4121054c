"""Windowing and overlap-add against ``demucs.apply.apply_model`` itself, with a model that is fast and exact."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest
import torch
from demucs.apply import apply_model
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.inference.segments import Geometry, History, OverlapAdd, Samples, plan

SMALL = Geometry(length=1000, stride=750)


class Smear(torch.nn.Module):
    """Two sources from any input of exactly one segment; the answer depends on the place in the window."""

    samplerate = 100
    segment = Fraction(10)
    sources = ("one", "two")

    def __init__(self) -> None:
        super().__init__()
        self.ramp = torch.nn.Parameter(torch.linspace(0.5, 1.5, SMALL.length))

    def valid_length(self, length: int) -> int:
        return SMALL.length

    def forward(self, mix: torch.Tensor) -> torch.Tensor:
        shifted = torch.roll(mix, 7, dims=-1)
        return torch.stack([mix * self.ramp, shifted * self.ramp.flip(0)], dim=1)


def blocks(track: Samples, sizes: list[int]) -> Iterator[Samples]:
    position = 0
    while position < track.shape[1]:
        size = sizes[position % len(sizes)]
        yield track[:, position : position + size]
        position += size


def streamed(model: Smear, track: Samples, sizes: list[int], *, skip_covered: bool = False) -> Samples:
    """The track through our streaming parts, as ``Separator`` puts them together."""
    history, overlap_add, parts = History(2, 0.0, 1.0), OverlapAdd(SMALL), []
    source = blocks(track, sizes)
    total = track.shape[1]
    for segment in plan(total, SMALL, skip_covered=skip_covered):
        while history.end < min(segment.window + SMALL.length, total):
            history.append(next(source))
        window = np.empty((2, SMALL.length), np.float32)
        history.window(segment.window, SMALL.length, window)
        history.forget(segment.start + SMALL.stride - SMALL.length // 2)
        with torch.no_grad():
            answer = model(torch.from_numpy(window)[None])[0].numpy()
        margin = segment.start - segment.window
        parts.append(overlap_add.add(segment, answer[..., margin : margin + segment.frames]))
    return np.concatenate(parts, axis=-1)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6000), st.lists(st.integers(1, 900), min_size=1, max_size=4))
def test_matches_apply_model(total: int, sizes: list[int]) -> None:
    track = np.random.default_rng(total).standard_normal((2, total)).astype(np.float32)
    model = Smear()
    expected = apply_model(cast(Any, model), torch.from_numpy(track)[None], shifts=0, overlap=0.25)[0].numpy()
    actual = streamed(model, track, sizes)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6)


@given(st.integers(1, 10_000), st.booleans())
def test_plan_covers_every_frame(total: int, skip_covered: bool) -> None:
    segments = list(plan(total, SMALL, skip_covered=skip_covered))
    assert segments[0].start == 0
    assert [segment.last for segment in segments] == [False] * (len(segments) - 1) + [True]
    assert segments[-1].start + segments[-1].frames == total
    for before, after in itertools.pairwise(segments):
        assert after.start == before.start + SMALL.stride
        assert before.frames == SMALL.length or after.last


@given(st.integers(SMALL.length + 1, 10_000))
def test_skip_covered_leaves_out_only_what_is_covered(total: int) -> None:
    every = list(plan(total, SMALL))
    fewer = list(plan(total, SMALL, skip_covered=True))
    covered = every[-2].start + SMALL.length >= total
    assert len(fewer) == len(every) - covered


@given(st.integers(1, 10_000), st.integers(0, 20), st.booleans())
def test_a_plan_from_a_segment_on_makes_the_same_frames(total: int, first: int, skip_covered: bool) -> None:
    everything = list(plan(total, SMALL, skip_covered=skip_covered))
    rest = list(plan(total, SMALL, skip_covered=skip_covered, first=first))
    assert rest == everything[len(everything) - len(rest) :]
    # It begins with the segment before the wanted one, or where that is left out, before the last.
    assert rest[0].index == max(0, min(first, everything[-1].index) - 1)


def test_history_does_not_grow() -> None:
    history = History(2, 0.0, 1.0)
    for _ in range(1000):
        history.append(np.zeros((2, 500), np.float32))
        history.forget(history.end - SMALL.length)
    assert history._frames.shape[1] <= SMALL.length


def test_normalisation() -> None:
    history = History(2, mean=0.5, scale=4.0)
    history.append(np.full((2, 10), 0.75, np.float32))
    window = np.empty((2, 12), np.float32)
    history.window(-1, 12, window)
    assert window[0].tolist() == [0.0, *[1.0] * 10, 0.0]


@pytest.mark.parametrize("stride", [0, 499, 1001])
def test_geometry_refuses_what_cannot_work(stride: int) -> None:
    with pytest.raises(ValueError, match="stride"):
        Geometry(1000, stride)
