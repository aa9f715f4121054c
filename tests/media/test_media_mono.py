"""One channel of two."""

from __future__ import annotations

import numpy as np
import pytest

from servers.analyzer.analysis import Feature
from servers.media.mono import Mono
from tests.analyzer.streams import RATE, Samples, band, expected
from tests.media.signals import noise

HEARD = [Feature.ONSETS, Feature.TEMPO, Feature.KEY, Feature.PITCH, Feature.EMBEDDING]
FADE = RATE // 100


def opposite(samples: Samples) -> Samples:
    return np.concatenate([samples, -samples])


def test_it_is_the_mean() -> None:
    both = noise(2, -20, seed=1)
    mono = Mono(RATE, 2)
    for chunk in np.split(both, 2, axis=1):
        np.testing.assert_array_equal(mono.process(chunk), chunk.mean(axis=0))
    np.testing.assert_array_equal(Mono(RATE, 1).process(both[:1]), both[0])


@pytest.mark.parametrize(("level", "heard"), [(0.009, True), (0.011, False)])
def test_of_opposite_channels_it_is_the_left_one(level: float, heard: bool) -> None:
    """What both have in common is 40 dB below them, or just not."""
    side, middle = noise(1, -20, seed=1, channels=1), noise(1, -20, seed=2, channels=1)
    both = (opposite(side) + level * middle).astype(np.float32)
    np.testing.assert_array_equal(Mono(RATE, 2).process(both), both[0] if heard else both.mean(axis=0))


def test_it_is_faded_from_one_to_the_other() -> None:
    """No step is heard: of a constant, none is larger than the fade's. Silence changes nothing."""
    same, turned = np.full((2, RATE), 0.5, np.float32), opposite(np.full((1, RATE), 0.5, np.float32))
    mono = Mono(RATE, 2)
    found = np.concatenate([mono.process(each) for each in (same, turned, 0 * same, turned, same)])
    np.testing.assert_array_equal(found[RATE + FADE : 2 * RATE], 0.5)
    np.testing.assert_array_equal(found[3 * RATE :], 0.5)
    np.testing.assert_allclose(np.diff(found[RATE : RATE + FADE]), 0.5 / FADE, rtol=1e-3)


def test_a_recording_of_opposite_channels_is_heard_as_one_of_them() -> None:
    samples = band(6, channels=1)
    there, found = (expected(each, names=HEARD).features for each in (samples, opposite(samples)))
    assert found == there
    assert not [unknown for unknown in found.unknown if unknown.reason == "SILENT"]
