"""Windows of streams."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from servers.media.windows import WindowCutter

WINDOW, HOP = 20, 10


def cut(samples: np.ndarray[Any, Any], cuts: list[int], hop: int = HOP) -> list[np.ndarray[Any, Any]]:
    cutter = WindowCutter(WINDOW, hop, 8)
    made = [windows for part in np.split(samples, cuts) for windows in cutter.process(part)]
    return [*made, *cutter.finish()]


def ramp(samples: int) -> np.ndarray[Any, Any]:
    return np.arange(1, samples + 1, dtype=np.float32)


def test_each_window_once_in_batches_however_cut() -> None:
    samples = ramp(205)
    whole = cut(samples, [])
    assert [len(windows) for windows in whole] == [8, 8, 4]
    for cuts in ([1, 2, 150], list(range(0, 205, 7)), [80, 90], [0, 0, 205]):
        np.testing.assert_array_equal(np.concatenate(cut(samples, cuts)), np.concatenate(whole))


def test_windows_are_where_they_are_said_to_be() -> None:
    found = np.concatenate(cut(ramp(205), []))
    np.testing.assert_array_equal(found[:, 0], np.arange(20) * HOP + 1)
    np.testing.assert_array_equal(found[3], np.arange(31, 51))
    np.testing.assert_array_equal(found[-1], [*range(191, 206), *[0] * 5])


@pytest.mark.parametrize(
    ("samples", "windows"), [(0, 0), (1, 1), (10, 1), (20, 1), (21, 2), (90, 8), (91, 9), (100, 9), (170, 16)]
)
def test_every_sample_is_in_a_window(samples: int, windows: int) -> None:
    made = cut(ramp(samples), [])
    assert sum(len(some) for some in made) == windows
    assert max((some.max() for some in made), default=0) == samples


def test_windows_that_do_not_overlap() -> None:
    assert np.concatenate(cut(ramp(170), [3], hop=WINDOW)).reshape(-1)[:170].tolist() == ramp(170).tolist()
