"""The demonstration song."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from servers.media.probe import probe
from servers.media.synthetic import make_stems, write_song


def test_song_is_deterministic_and_not_clipped(tmp_path: Path) -> None:
    for name in ("a.flac", "b.flac"):
        write_song(tmp_path / name, seconds=3.0)
    assert (tmp_path / "a.flac").read_bytes() == (tmp_path / "b.flac").read_bytes()
    write_song(tmp_path / "c.wav", seconds=3.0, seed=1)
    facts = probe(tmp_path / "a.flac", max_seconds=10)
    assert (facts.frames, facts.channels, facts.bit_depth) == (132_300, 2, 24)
    assert 0.8 < facts.peak < 1
    other, _ = soundfile.read(tmp_path / "c.wav")
    assert not np.allclose(other, soundfile.read(tmp_path / "a.flac")[0], atol=1e-3)


@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_stems_sound_like_what_they_are(rate: int) -> None:
    stems = make_stems(seconds=6.0, sample_rate=rate)
    assert set(stems) == {"drums", "bass", "other", "vocals"}
    middle = {}
    for name, samples in stems.items():
        assert samples.shape == (2, 6 * rate)
        power = np.abs(np.fft.rfft(samples.sum(axis=0))) ** 2
        middle[name] = float((power * np.fft.rfftfreq(6 * rate, 1 / rate)).sum() / power.sum())
        assert np.square(samples).mean() > 1e-4
    assert middle["bass"] < middle["other"] < middle["vocals"] * 1.5
    assert middle["bass"] < 200


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_song(tmp_path / "x.txt")
    with pytest.raises(ValueError):
        write_song(tmp_path / "x.wav", seconds=0)
