"""Tempo, beats and bars of rhythms that are known, and of what has none."""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import pytest

from servers.analyzer.beats import bars, track_beats
from servers.analyzer.envelope import EnvelopeFeature
from servers.analyzer.tempo import Tempo, find_tempo, levels, smoothest
from servers.analyzer.tempogram import GRID
from servers.analyzer.unknown import Unknown
from tests.analyzer.rhythms import RATE, Rhythm, Samples, clicks, drums, without_beat
from tests.bench.analysis.rhythm import GROOVES, f_measure, powers, song

AUDIO = Path(__file__).parents[3] / "shared" / "audio"


def told(samples: Samples) -> Tempo | Unknown:
    feature = EnvelopeFeature()
    feature.process(powers(samples))
    return find_tempo(feature.finish())


def tempo_of(rhythm: Rhythm) -> Tempo:
    tempo = told(rhythm.samples)
    assert isinstance(tempo, Tempo), tempo
    return tempo


@pytest.mark.parametrize("bpm", [41, 77, 120, 163, 220, 238])
def test_of_clicks(bpm: float) -> None:
    rhythm = clicks(bpm, 16, np.random.default_rng(0))
    tempo = tempo_of(rhythm)
    assert tempo.bpm == pytest.approx(bpm, rel=0.005)
    assert tempo.stable
    assert tempo.min_bpm == pytest.approx(bpm, rel=0.03)
    assert tempo.max_bpm == pytest.approx(bpm, rel=0.03)
    assert f_measure(np.array(tempo.beat_seconds), rhythm.beats) > 0.95


def test_beats_are_where_they_sound() -> None:
    rhythm = clicks(97, 20, np.random.default_rng(0))
    beats = np.array(tempo_of(rhythm).beat_seconds)
    errors = np.array([beats[np.abs(beats - moment).argmin()] - moment for moment in rhythm.beats])
    assert np.abs(np.median(errors)) < 0.012
    assert np.quantile(np.abs(errors), 0.9) < 0.02


@pytest.mark.parametrize("pattern", ["rock", "house", "motown", "waltz", "breakbeat"])
def test_of_a_band(pattern: str) -> None:
    rhythm = drums(pattern, 108, 20, np.random.default_rng(1), bass=True, chords=True)
    tempo = tempo_of(rhythm)
    assert tempo.bpm == pytest.approx(108, rel=0.01)
    assert f_measure(np.array(tempo.beat_seconds), rhythm.beats) > 0.9


@pytest.mark.parametrize("seconds", [12, 30])
def test_of_the_synthetic_song(seconds: float) -> None:
    rhythm = song(seconds, 3)
    tempo = tempo_of(rhythm)
    assert tempo.bpm == pytest.approx(108, rel=0.005)
    assert 0.5 < tempo.confidence < 0.99  # its eighths are nearly as strong as its beats
    assert f_measure(np.array(tempo.beat_seconds), rhythm.beats) > 0.95


@pytest.mark.parametrize("pattern", ["disco", "funk", "slow soul", "shuffle", "techno"])
def test_of_a_groove(pattern: str) -> None:
    slowest, fastest, swing, voices = GROOVES[pattern]
    bpm = (slowest + fastest) / 2
    tempo = tempo_of(drums(voices, bpm, 16, np.random.default_rng(7), swing=swing, bass=True))
    assert tempo.bpm == pytest.approx(bpm, rel=0.01)


def test_the_likeliest_tempo_is_that_of_most_evidence_within_three_percent() -> None:
    scores = np.full((3, len(GRID)), -20.0)
    scores[:, 40] = 5.0
    scores[:, 110:113] = 4.9  # less each, but more in all
    path, _ = levels(scores, np.full(3, 40))
    assert set(path) <= {110, 111, 112}


def test_of_swing() -> None:
    tempo = tempo_of(drums("jazz", 140, 20, np.random.default_rng(2), swing=0.66, bass=True))
    assert tempo.bpm == pytest.approx(140, rel=0.01)


def test_of_a_tempo_that_rises() -> None:
    rhythm = drums("rock", 120, 40, np.random.default_rng(3), drift=0.2)
    tempo = tempo_of(rhythm)
    assert not tempo.stable
    assert tempo.bpm == pytest.approx(120, rel=0.04)
    assert 106 < tempo.min_bpm < 116
    assert 124 < tempo.max_bpm < 134
    assert f_measure(np.array(tempo.beat_seconds), rhythm.beats) > 0.9


@pytest.mark.parametrize(("pattern", "meter"), [("rock", 4), ("waltz", 3)])
def test_of_bars(pattern: str, meter: int) -> None:
    rhythm = drums(pattern, 112, 40, np.random.default_rng(4), bass=True, chords=True)
    tempo = tempo_of(rhythm)
    assert tempo.beats_per_bar == meter
    beats = np.array(tempo.beat_seconds)
    assert f_measure(beats[list(tempo.downbeats)], rhythm.downbeats) > 0.9


def test_bars_of_equal_beats_cannot_be_told() -> None:
    tempo = tempo_of(clicks(100, 20, np.random.default_rng(0), noise=0.01))
    assert (tempo.beats_per_bar, tempo.downbeats) == (0, ())
    assert bars(np.ones((3, 64))) == (0, 0)
    assert bars(np.random.default_rng(0).normal(size=(3, 64))) == (0, 0)
    assert bars(np.zeros((3, 0))) == (0, 0)


@pytest.mark.parametrize("kind", ["noise", "drone", "talk", "rubato"])
def test_of_what_has_no_beat(kind: str) -> None:
    tempo = told(without_beat(kind, 20, np.random.default_rng(5)).samples)
    assert isinstance(tempo, Unknown)
    assert tempo.reason == "NO_BEAT"


@pytest.mark.parametrize("seconds", [0.0, 1e-4, 0.01, 1.0, 3.9])
def test_too_short(seconds: float) -> None:
    tempo = told(np.random.default_rng(0).normal(0, 0.1, int(seconds * RATE)).astype(np.float32))
    assert isinstance(tempo, Unknown)
    assert tempo.reason == ("TOO_SHORT" if seconds * RATE > 1 else "SILENT")


@pytest.mark.parametrize("value", [0.0, 1e-5])
def test_silent(value: float) -> None:
    tempo = told(np.full(10 * RATE, value, np.float32))
    assert isinstance(tempo, Unknown)
    assert tempo.reason == "SILENT"


def test_of_one_click_or_a_constant() -> None:
    click, constant = np.zeros(10 * RATE, np.float32), np.full(10 * RATE, 0.3, np.float32)
    click[RATE] = 1
    for samples in (click, constant):
        tempo = told(samples)
        assert isinstance(tempo, Unknown)
        assert tempo.reason == "NO_BEAT"


def test_the_smoothest_course_ignores_one_window() -> None:
    scores = np.full((9, len(GRID)), -5.0)
    scores[:, 100] = 5
    scores[4] = -5
    scores[4, 31] = 6
    np.testing.assert_array_equal(smoothest(scores), 100)


def test_beats_go_on_where_there_is_a_pause() -> None:
    strength = np.zeros(1_000)
    strength[np.r_[20:400:20, 600:1000:20]] = 1
    np.testing.assert_allclose(track_beats(strength, np.full(1_000, 20.0)), np.arange(20, 1_000, 20), atol=0.6)


@pytest.mark.parametrize(
    ("name", "bpm"), [("Karissa_Hobbs_-_Lets_Go_Fishin", 88.5), ("Kevin_MacLeod_-_Vibe_Ace", 130.0)]
)
def test_of_songs(name: str, bpm: float) -> None:
    path = AUDIO / f"{name}.hq.ogg"
    if not path.exists():
        pytest.skip("no recordings in ../shared/audio")
    samples, _ = librosa.load(path, sr=RATE)
    tempo = tempo_of(Rhythm(samples, bpm))
    told = [tempo.bpm, *(other.bpm for other in tempo.alternatives)]
    assert any(other == pytest.approx(bpm, rel=0.02) for other in told)
    assert any(tempo.bpm == pytest.approx(bpm * octave, rel=0.02) for octave in (0.5, 1, 2))


@pytest.mark.parametrize("name", ["198-209-0000", "5703-47212-0000"])
def test_of_speech(name: str) -> None:
    path = AUDIO / f"{name}.hq.ogg"
    if not path.exists():
        pytest.skip("no recordings in ../shared/audio")
    samples, _ = librosa.load(path, sr=RATE)
    tempo = told(samples)
    assert isinstance(tempo, Unknown)
    assert tempo.reason == "NO_BEAT"
