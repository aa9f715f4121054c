"""Onsets against librosa's, and the envelope that they share with tempo."""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import pytest

from servers.analyzer.envelope import Envelope, EnvelopeFeature, Samples
from servers.analyzer.onsets import Onsets, find_onsets
from servers.analyzer.tempo import Tempo, find_tempo
from servers.analyzer.unknown import Unknown
from tests.analyzer.rhythms import RATE, clicks, drums, without_beat
from tests.bench.analysis.rhythm import powers

AUDIO = Path(__file__).parents[3] / "shared" / "audio"


def found(samples: Samples, step: int = 100) -> tuple[Onsets | Unknown, Envelope]:
    feature, spectra = EnvelopeFeature(), powers(samples)
    for begin in range(0, len(spectra), step):
        feature.process(spectra[begin : begin + step])
    envelope = feature.finish()
    return find_onsets(envelope), envelope


def check(samples: Samples, begins: bool = False) -> None:
    """As librosa, frame for frame, but that what begins with the recording, if so, is found, at the second frame."""
    onsets, envelope = found(samples)
    assert isinstance(onsets, Onsets)
    strength = librosa.onset.onset_strength(y=samples, sr=RATE)
    expected = librosa.onset.onset_detect(
        y=samples, sr=RATE, units="time", delta=0.06, wait=1, pre_avg=1, post_avg=1, post_max=1
    )
    assert 0 <= envelope.strength[1] <= 0.5 * strength.max()
    np.testing.assert_allclose(np.delete(envelope.strength, 1), np.delete(strength, 1), atol=0.02)
    first = [512 / RATE] if begins else []
    np.testing.assert_allclose(onsets.seconds, [*first, *expected])
    assert onsets.count == len(onsets.seconds)
    assert onsets.rate == pytest.approx(onsets.count / (len(samples) / RATE), rel=0.01)


def test_of_drums() -> None:
    check(drums("breakbeat", 130, 12, np.random.default_rng(0), bass=True, noise=0.002).samples)


def test_of_talk_that_grows_by_60_db() -> None:
    samples = without_beat("talk", 20, np.random.default_rng(1)).samples
    check((samples * np.geomspace(1e-3, 1, len(samples))).astype(np.float32))


def test_what_grows_after_what_is_kept_is_close() -> None:
    """The level at which librosa clips is known only at the end, and the frames before are kept for 24 s."""
    quiet = drums("rock", 100, 40, np.random.default_rng(2), noise=1e-5).samples * np.float32(0.01)
    loud = drums("rock", 100, 5, np.random.default_rng(3)).samples
    samples = np.concatenate([quiet, loud])
    onsets, envelope = found(samples)
    assert isinstance(onsets, Onsets)
    strength = librosa.onset.onset_strength(y=samples, sr=RATE)
    assert np.abs(envelope.strength - strength).max() < 0.05 * strength.max()
    expected = librosa.onset.onset_detect(
        onset_envelope=strength, sr=RATE, delta=0.06, wait=1, pre_avg=1, post_avg=1, post_max=1
    )
    mine = np.round(np.array(onsets.seconds) * RATE / 512).astype(int)
    assert len(np.setxor1d(mine, expected)) <= 0.1 * len(expected)


@pytest.mark.parametrize("name", sorted(path.name for path in AUDIO.glob("*.ogg")) or ["none"])
def test_of_recordings(name: str) -> None:
    if name == "none":
        pytest.skip("no recordings in ../shared/audio")
    samples, _ = librosa.load(AUDIO / name, sr=RATE, duration=30)
    check(samples, begins=name.startswith("sorohanro"))  # whose first note is cut


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_do_not_depend_on_how_the_stream_was_cut(step: int) -> None:
    samples = np.concatenate([np.zeros(RATE, np.float32), clicks(100, 5, np.random.default_rng(0), noise=0.01).samples])
    (onsets, envelope), (others, other) = found(samples), found(samples, step)
    assert onsets == others
    for name in ("strength", "bands", "change"):
        np.testing.assert_allclose(getattr(other, name), getattr(envelope, name), atol=0.02, err_msg=name)


@pytest.mark.parametrize("pattern", ["rock", "house", "jazz"])
def test_of_what_begins_at_once(pattern: str) -> None:
    """A loop has its first onset and, however it goes on, its first beat; the others are librosa's."""
    loop = drums(pattern, 120, 12, np.random.default_rng(0), bass=True, noise=0.002, first=0.0).samples
    onsets, envelope = found(loop)
    assert isinstance(onsets, Onsets)
    assert onsets.seconds[0] < 0.03
    strength = librosa.onset.onset_strength(y=loop, sr=RATE)
    np.testing.assert_allclose(np.delete(envelope.strength, 1), np.delete(strength, 1), atol=0.02)
    expected = librosa.onset.onset_detect(
        onset_envelope=strength, sr=RATE, units="time", delta=0.06, wait=1, pre_avg=1, post_avg=1, post_max=1
    )
    np.testing.assert_allclose(onsets.seconds[1:], expected)
    tempo = find_tempo(envelope)
    assert isinstance(tempo, Tempo)
    assert tempo.beat_seconds[0] < 0.03


def test_noise_before_a_sound_is_no_onset() -> None:
    samples = clicks(120, 5, np.random.default_rng(0), noise=1e-4).samples
    onsets, _ = found(samples)
    assert isinstance(onsets, Onsets)
    assert onsets.seconds[0] == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("count", [0, 1, 220, 2_048, 5_000])
@pytest.mark.parametrize("value", [0.0, 1e-5, 0.5])
def test_of_next_to_nothing(count: int, value: float) -> None:
    onsets, envelope = found(np.full(count, value, np.float32))
    assert len(envelope.strength) == len(envelope.bands) == len(envelope.change) == 1 + count // 512
    if count < 2_048 or value < 1e-4:
        assert isinstance(onsets, Unknown)
        assert onsets.reason == ("TOO_SHORT" if count < 2_048 else "SILENT")


def test_of_one_click() -> None:
    samples = np.zeros(3 * RATE, np.float32)
    samples[RATE] = 1.0
    onsets, _ = found(samples)
    assert isinstance(onsets, Onsets)
    assert len(onsets.seconds) >= 1
    assert all(abs(second - 1) < 0.05 for second in onsets.seconds)
