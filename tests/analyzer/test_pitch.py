"""Pitch contours against known pitches, and streamed against whole."""

from __future__ import annotations

from collections.abc import Callable

import librosa
import numpy as np
import pytest
import swift_f0
from numpy.typing import NDArray

from servers.analyzer import pitch as pitch_module
from servers.analyzer.contour import Contour
from servers.analyzer.pitch import RATE, Method, Pitch, PitchFeature
from servers.analyzer.unknown import Unknown

Samples = NDArray[np.float32]
Truth = NDArray[np.float64]  # Hz of each sample


def found(samples: Samples, method: Method = "swift-f0", cut: int = 100_000) -> Pitch | Unknown:
    feature = PitchFeature(method)
    for start in range(0, len(samples), cut):
        feature.process(samples[start : start + cut])
    return feature.finish()


def known(samples: Samples, method: Method = "swift-f0", cut: int = 100_000) -> Pitch:
    pitch = found(samples, method, cut)
    assert isinstance(pitch, Pitch), pitch
    return pitch


def sung(hz: Truth) -> Samples:
    """A voice of eight harmonics at a pitch in Hz that is given for each sample."""
    phase = 2 * np.pi * np.cumsum(hz) / RATE
    return np.sum([0.2 / h * np.sin(h * phase) for h in range(1, 9)], axis=0).astype(np.float32)


def glide(seconds: float, low: float = 80.0, high: float = 800.0) -> Truth:
    return np.geomspace(low, high, round(seconds * RATE))


def vibrato(seconds: float) -> Truth:
    time = np.arange(round(seconds * RATE)) / RATE
    return np.asarray(330 * 2 ** (np.sin(2 * np.pi * 5.5 * time) / 12))


def octaves(seconds: float) -> Truth:
    time = np.arange(round(seconds * RATE)) / RATE
    return np.where(time % 1 < 0.5, 220.0, 440.0)


def cents(contour: Samples, truth: Truth, hop_seconds: float) -> Truth:
    """Error of voiced points, in cents."""
    at = np.minimum(np.rint(np.arange(len(contour)) * hop_seconds * RATE).astype(int), len(truth) - 1)
    voiced = contour > 0
    return np.asarray(1200 * np.log2(contour[voiced] / truth[at][voiced]))


@pytest.mark.parametrize(("curve", "gross"), [(glide, 0.01), (vibrato, 0.01), (octaves, 0.07)])
def test_known_pitch(curve: Callable[[float], Truth], gross: float) -> None:
    """Around each of the octave jumps, two of thirty frames hear both octaves."""
    truth = curve(6.0)

    pitch = known(sung(truth))

    errors = np.abs(cents(pitch.contour_hz, truth, pitch.hop_seconds))
    assert pitch.voiced_share > 0.9
    assert np.mean(errors > 50) < gross
    assert np.median(errors) < 12
    for value, percent in ((pitch.low_hz, 5), (pitch.high_hz, 95)):
        assert value == pytest.approx(np.percentile(truth, percent), rel=0.05)
    assert pitch.low_hz * 0.999 <= pitch.median_hz <= pitch.high_hz * 1.001


@pytest.mark.parametrize("cut", [1_000, 37_013, 1_000_000])
def test_streamed_equals_one_call(cut: int) -> None:
    random = np.random.default_rng(0)
    quiet = np.zeros(10 * RATE)  # longer than a chunk
    samples = np.concatenate([sung(glide(11)), quiet, sung(vibrato(3.3)), 0.05 * random.standard_normal(RATE)])
    samples = (samples + np.where(samples != 0, 0.01 * random.standard_normal(len(samples)), 0)).astype(np.float32)

    pitch = known(samples, cut=cut)

    whole = swift_f0.SwiftF0(threads=1).detect(samples, RATE)
    expected = np.where(whole.confidence >= 0.5, whole.pitch_hz, 0)
    assert len(pitch.contour_hz) == len(expected)
    voiced = expected > 0
    np.testing.assert_array_equal(pitch.contour_hz > 0, voiced)
    assert np.abs(1200 * np.log2(pitch.contour_hz[voiced] / expected[voiced])).max() < 1
    assert pitch.voiced_share == pytest.approx(voiced.mean())
    assert pitch.median_hz == pytest.approx(np.median(expected[voiced]), rel=0.001)


def test_pyin_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pitch_module._Pyin, "_CHUNK", 40)
    truth = glide(2.6, 150, 450)
    samples = sung(truth)

    pitch = known(samples, "pyin", 10_000)

    errors = np.abs(cents(pitch.contour_hz, truth, pitch.hop_seconds))
    assert pitch.method == "pyin"
    assert pitch.hop_seconds == pytest.approx(0.032)
    assert pitch.voiced_share > 0.95
    assert np.mean(errors > 50) < 0.05
    whole, _, _ = librosa.pyin(
        samples, fmin=32.7032, fmax=2093.0045, sr=RATE, hop_length=512, no_trough_prob=0.001, fill_na=0.0
    )
    np.testing.assert_allclose(pitch.contour_hz, whole, rtol=0.006)  # a bin of 10 cents


RANDOM = np.random.default_rng(0)
TIME = np.arange(5 * RATE) / RATE
WITHOUT = {
    "white noise": 0.2 * RANDOM.standard_normal(5 * RATE),
    "a click": np.eye(1, 5 * RATE, RATE)[0],
    "clicks": TIME % 0.5 == 0,
    "a constant": np.full(5 * RATE, 0.5),
    "a constant of 80 dB": np.full(5 * RATE, 1e4),
    "a whistle above all voices": 0.3 * np.sin(2 * np.pi * 6000 * TIME),
}


@pytest.mark.parametrize("what", WITHOUT)
def test_no_pitch(what: str) -> None:
    pitch = found(WITHOUT[what].astype(np.float32))

    assert isinstance(pitch, Unknown)
    assert pitch.reason == "NO_PITCH"


def test_pyin_finds_no_pitch_in_noise() -> None:
    pitch = found(WITHOUT["white noise"][:RATE].astype(np.float32), "pyin")

    assert isinstance(pitch, Unknown)
    assert pitch.reason == "NO_PITCH"


@pytest.mark.parametrize("method", ["swift-f0", "pyin"])
@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(0, np.float32), "TOO_SHORT"),
        (np.ones(1, np.float32), "TOO_SHORT"),
        (sung(glide(0.01)), "TOO_SHORT"),
        (np.zeros(RATE, np.float32), "SILENT"),
    ],
    ids=["nothing", "a sample", "10 ms", "zeros"],
)
def test_short_and_silent(samples: Samples, reason: str, method: Method) -> None:
    pitch = found(samples, method)

    assert isinstance(pitch, Unknown)
    assert pitch.reason == reason


def test_there_is_no_other_method() -> None:
    with pytest.raises(ValueError, match="yin"):
        PitchFeature("yin")  # type: ignore[arg-type]


def test_long_contours_are_thinned() -> None:
    frames = np.repeat(np.arange(100, 200, dtype=np.float32), 7)
    frames[::5] = 0

    contour = Contour(limit=200)
    for start in range(0, len(frames), 13):
        contour.extend(frames[start : start + 13])
    hz, group = contour.finish()

    assert group == 4
    assert len(hz) == len(frames) // 4
    assert contour.frames == len(frames)
    assert contour.voiced == np.count_nonzero(frames)
    assert all(value in frames[4 * point : 4 * point + 4] for point, value in enumerate(hz))
    whole = Contour(limit=200)
    whole.extend(frames)
    np.testing.assert_array_equal(whole.finish()[0], hz)


def test_thinned_points_have_a_pitch_where_half_of_their_frames_have() -> None:
    contour = Contour(limit=2)
    contour.extend(np.array([100, 0, 0, 0, 0, 200, 300, 0, 400], np.float32))

    hz, group = contour.finish()

    assert group == 8
    assert list(hz) == [0, 0]


def test_percentiles() -> None:
    contour = Contour()
    contour.extend(np.array([0, 100, 200, 300, 0], np.float32))

    assert contour.percentiles(0, 50, 100) == pytest.approx([100, 200, 300], rel=0.0005)
