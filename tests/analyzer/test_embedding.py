"""The embedding finds music again, and survives what is none."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from servers.analyzer.embedding import EmbeddingFeature, Embeddings
from servers.analyzer.logspectrum import FFT_LENGTH, HOP, RATE, Samples
from servers.analyzer.unknown import Unknown
from servers.media.frames import Framer, power_spectra
from tests.analyzer.changes import CHANGES
from tests.analyzer.pieces import piece

_FAMILIES, _PIECES, _SECONDS, _SEED = 8, 5, 12.0, 5


def _powers(samples: Samples) -> Samples:
    framer, window = Framer(FFT_LENGTH, HOP), np.hanning(FFT_LENGTH + 1)[:-1].astype(np.float32)
    return np.concatenate([power_spectra(part, window) for part in (framer.process(samples), framer.finish())])


def _result(samples: Samples) -> Embeddings | Unknown:
    feature = EmbeddingFeature()
    feature.process(samples, _powers(samples))
    return feature.finish()


def _embedded(samples: Samples) -> Embeddings:
    result = _result(samples)
    assert isinstance(result, Embeddings)
    return result


@pytest.fixture(scope="module")
def pieces() -> list[Samples]:
    return [piece(_SEED, family, number, _SECONDS) for family in range(_FAMILIES) for number in range(_PIECES)]


@pytest.fixture(scope="module")
def collection(pieces: list[Samples]) -> Samples:
    return np.array([_embedded(each).track for each in pieces])


@pytest.mark.parametrize(
    "change",
    [
        "transposed +3",
        "stretched 0.95",
        "resampled 1.05",
        "telephone",
        "noise 10 dB",
        "bass +9 dB",
        "clipped",
        "opus 32",
    ],
)
def test_finds_a_changed_recording_among_others_like_it(
    change: str, pieces: list[Samples], collection: Samples
) -> None:
    asked = list(range(0, len(pieces), _PIECES))
    nearest = [int(np.argmax(collection @ _embedded(CHANGES[change](pieces[index])).track)) for index in asked]
    assert np.mean(np.array(nearest) == asked) > 0.9


def test_a_stretch_of_a_recording_finds_all_of_it(pieces: list[Samples], collection: Samples) -> None:
    asked = list(range(1, len(pieces), _PIECES))
    nearest = [int(np.argmax(collection @ _embedded(pieces[index][30_000:150_000]).track)) for index in asked]
    assert nearest == asked


def test_pieces_of_one_band_are_nearer_than_others(collection: Samples) -> None:
    similar = collection @ collection.T - 2 * np.eye(len(collection))
    family = np.arange(len(collection)) // _PIECES
    others = np.argsort(-similar, axis=1)[:, : _PIECES - 1]
    assert np.mean(family[others] == family[:, None]) > 0.85


def test_values(pieces: list[Samples]) -> None:
    result = _embedded(np.concatenate([pieces[0], pieces[0], pieces[0][: RATE * 3]]))  # 27 s
    assert result.track.shape == (512,)
    assert result.track.dtype == np.float32
    assert np.linalg.norm(result.track) == pytest.approx(1, abs=1e-6)
    assert result.segments.dtype == np.float16
    assert result.segments.shape == (5, 512)  # at 0, 5, 10, 15 and, shorter, 20 s
    np.testing.assert_allclose(np.linalg.norm(result.segments.astype(np.float32), axis=1), 1, atol=1e-3)
    assert result.window_seconds == pytest.approx(10, abs=0.05)
    assert result.hop_seconds == result.window_seconds / 2
    assert result.model == "contrafact-signal-1"


def test_does_not_depend_on_the_cut_or_on_which_feed_is_ahead(pieces: list[Samples]) -> None:
    samples, powers = pieces[3], _powers(pieces[3])
    whole, cut = _embedded(samples), EmbeddingFeature()
    rng = np.random.default_rng(1)
    mono_cuts = np.sort(rng.integers(0, len(samples), 40))
    power_cuts = np.sort(rng.integers(0, len(powers), 40))
    for mono, power in zip(np.split(samples, mono_cuts), np.split(powers, power_cuts), strict=True):
        cut.process(mono, power)
    result = cut.finish()
    assert isinstance(result, Embeddings)
    np.testing.assert_allclose(result.track, whole.track, atol=1e-6)
    np.testing.assert_array_equal(result.segments, whole.segments)


def test_gain_does_not_matter(pieces: list[Samples]) -> None:
    assert _embedded(pieces[0] * np.float32(0.01)).track @ _embedded(pieces[0]).track > 0.9999


def test_rounding_matters_little(pieces: list[Samples]) -> None:
    noise = np.random.default_rng(0).standard_normal(len(pieces[0])).astype(np.float32)
    np.testing.assert_allclose(_embedded(pieces[0] + 1e-7 * noise).track, _embedded(pieces[0]).track, atol=1e-4)


def test_silent_segments_do_not_count(pieces: list[Samples]) -> None:
    pause = np.zeros(30 * RATE, np.float32)
    result = _embedded(np.concatenate([pieces[0], pause]))
    assert not result.segments[-3:].any()
    heard = result.segments[result.segments.any(axis=1)].astype(np.float32).sum(axis=0)
    np.testing.assert_allclose(result.track, heard / np.linalg.norm(heard), atol=1e-3)


@pytest.mark.parametrize("what", ["noise", "440 Hz", "9 kHz"])
def test_silence_is_below_70_dbfs(what: str) -> None:
    count = 12 * RATE
    hertz = {"440 Hz": 440, "9 kHz": 9000}.get(what)
    sound = (
        np.random.default_rng(0).standard_normal(count)
        if hertz is None
        else np.sin(2 * np.pi * hertz / RATE * np.arange(count))
    )
    sound *= np.hanning(count) / sound.std()  # without clicks at the ends
    _embedded((sound * 10 ** (-65 / 20)).astype(np.float32))
    for faint in (sound * 10 ** (-75 / 20), sound * 0):
        result = _result(faint.astype(np.float32))
        assert isinstance(result, Unknown)
        assert result.reason == "SILENT"


@pytest.mark.parametrize("count", [0, 1, 220, RATE // 2])
def test_too_short(count: int) -> None:
    result = _result(np.ones(count, np.float32))
    assert isinstance(result, Unknown)
    assert result.reason == "TOO_SHORT"


@pytest.mark.parametrize("seconds", [1.0, 4.9, 5.1, 10.1])
def test_short_ones_are_told(seconds: float, pieces: list[Samples]) -> None:
    result = _embedded(pieces[0][: int(seconds * RATE)])
    assert np.linalg.norm(result.track) == pytest.approx(1, abs=1e-6)
    assert len(result.segments) == (2 if seconds > 10.1 - 1e-9 else 1)


def test_survives_what_is_no_music() -> None:
    time = np.arange(11 * RATE) / RATE
    click = np.zeros(len(time))
    click[RATE] = 1
    strange = [
        np.ones(len(time)),
        click,
        np.sin(2 * np.pi * 440 * time),
        np.random.default_rng(0).normal(0, 0.1, len(time)),
        1e6 * time,
    ]
    for samples in strange:
        result = _embedded(samples.astype(np.float32))
        assert np.linalg.norm(result.track) == pytest.approx(1, abs=1e-6)


def test_memory_does_not_grow(pieces: list[Samples]) -> None:
    feature, powers = EmbeddingFeature(), _powers(pieces[0])
    for _ in range(8):
        feature.process(pieces[0], powers)
        assert len(pickle.dumps(feature)) < 3_500_000  # all that was fed: 50 MB


def test_finds_the_place_in_a_real_recording(real_song: Path) -> None:
    song, rate = soundfile.read(real_song, dtype="float32", frames=60 * 44_100)
    mono = soxr.resample(song.mean(axis=1), rate, RATE).astype(np.float32)
    parts = np.array_split(mono, 4)
    collection = np.array([_embedded(each).track for each in parts])
    for change in ("transposed +2", "telephone"):
        nearest = [int(np.argmax(collection @ _embedded(CHANGES[change](each)).track)) for each in parts]
        assert nearest == [0, 1, 2, 3]
