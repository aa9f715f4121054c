"""Albums against their measurement in one."""

from __future__ import annotations

import numpy as np
import pytest

from servers.analyzer.album import album_loudness
from servers.analyzer.loudness import Histogram
from tests.analyzer.test_loudness import loudness
from tests.media.signals import Samples, noise, sine


def test_as_measured_in_one() -> None:
    """The quiet song is gated out of the album, as it is of the whole."""
    songs: list[Samples] = [noise(20, -20, seed=1), sine(700, 15, -26), noise(30, -55, seed=2), noise(9, -14, seed=3)]
    found = album_loudness(loudness(song).histogram for song in songs)
    whole = loudness(np.concatenate(songs, axis=1)).integrated_lufs
    assert found is not None
    assert found.integrated_lufs == pytest.approx(whole, abs=0.05)
    assert found.album_gain_db == pytest.approx(-18 - found.integrated_lufs)
    mean = np.mean([loudness(song).integrated_lufs for song in songs])
    assert abs(found.integrated_lufs - mean) > 5


@pytest.mark.parametrize("level", [-60.0, -33.3, -1.2])
def test_of_one_track(level: float) -> None:
    found = loudness(noise(10, level, seed=4))
    album = album_loudness([found.histogram])
    assert album is not None
    assert album.integrated_lufs == pytest.approx(found.integrated_lufs, abs=0.025)


def test_silence() -> None:
    assert album_loudness([]) is None
    assert album_loudness([Histogram(0, ()), Histogram(700, (0, 0))]) is None


@pytest.mark.parametrize("histogram", [Histogram(-1, (1, 2)), Histogram(3999, (1, 2)), Histogram(5, (1, -2))])
def test_what_is_no_histogram(histogram: Histogram) -> None:
    with pytest.raises(ValueError, match="histogram"):
        album_loudness([histogram])
