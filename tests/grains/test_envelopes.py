"""Envelopes at the frames where the proto says what they are."""

from __future__ import annotations

import numpy as np
import pytest

from servers.grains.envelopes import envelope
from servers.grains.settings import Shape
from tests.grains.textbook import factor

RATE = 44_100


@pytest.mark.parametrize("shape", Shape)
@pytest.mark.parametrize("frames", [1, 2, 50, 88, 89, 5292])
def test_as_in_the_textbook(shape: Shape, frames: int) -> None:
    wanted = [factor(shape.value, i, frames, RATE) for i in range(frames)]
    np.testing.assert_allclose(envelope(shape, frames, RATE), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "factors"),
    [
        (Shape.EXPONENTIAL, {0: 1.0, 500: 10**-1.5, 999: 10**-2.997}),
        (Shape.LINEAR, {0: 1.0, 250: 0.75, 500: 0.5, 999: 0.001}),
        (Shape.HANN, {0: 0.0, 250: 0.5, 500: 1.0, 750: 0.5}),
        (Shape.ADSR, {0: 0.0, 50: 0.5, 100: 1.0, 200: 0.85, 300: 0.7, 699: 0.7, 850: 0.35}),
        (Shape.NONE, {0: 1.0, 911: 1.0, 912: 1.0, 956: 0.5, 999: 1 / 88}),
    ],
)
def test_shapes(shape: Shape, factors: dict[int, float]) -> None:
    found = envelope(shape, 1000, RATE)
    np.testing.assert_allclose([found[frame] for frame in factors], list(factors.values()), atol=1e-6)


@pytest.mark.parametrize("shape", Shape)
def test_of_nothing(shape: Shape) -> None:
    assert envelope(shape, 0, RATE).shape == (0,)
