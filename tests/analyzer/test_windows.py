"""Another model in the default's place: a small network of fixed weights."""

from __future__ import annotations

import numpy as np
import pytest

from servers.analyzer.embedding import Embeddings
from servers.analyzer.logspectrum import Samples
from servers.analyzer.unknown import Unknown
from servers.analyzer.windows import WindowFeature, WindowModel

_SECOND = 8000


class _Network:
    """Two layers on magnitude spectra, the mean over time."""

    name, sample_rate, window, hop = "network-3", _SECOND, 2 * _SECOND, _SECOND

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._first, self._second = rng.standard_normal((129, 64)) / 10, rng.standard_normal((64, 48))
        self.asked: list[int] = []

    def embed(self, windows: Samples) -> Samples:
        assert windows.dtype == np.float32
        assert windows.shape[1] == self.window
        self.asked.append(len(windows))
        spectra = np.log1p(np.abs(np.fft.rfft(windows[:, : 62 * 256].reshape(len(windows), 62, 256))))
        return np.asarray((np.maximum(0, spectra @ self._first) @ self._second).mean(axis=1), np.float32)


def _noise(seconds: float) -> Samples:
    noise = np.random.default_rng(4).standard_normal(int(seconds * _SECOND)).cumsum()
    return (noise / np.abs(noise).max()).astype(np.float32)


def _result(model: WindowModel, samples: Samples, cuts: list[int]) -> Embeddings:
    feature = WindowFeature(model)
    for part in np.split(samples, cuts):
        feature.process(part)
    result = feature.finish()
    assert isinstance(result, Embeddings)
    return result


def test_each_window_once_in_batches_however_cut() -> None:
    samples, network = _noise(20.5), _Network()
    whole = _result(network, samples, [])
    assert network.asked == [8, 8, 4]
    for cuts in ([1, 2, 30_000], list(range(0, len(samples), 777)), [16_000, 72_000]):
        np.testing.assert_array_equal(_result(_Network(), samples, cuts).segments, whole.segments)
    assert whole.segments.shape == (20, 512)
    assert not whole.segments[:, 48:].any()
    assert np.linalg.norm(whole.track) == pytest.approx(1, abs=1e-6)
    assert (whole.window_seconds, whole.hop_seconds, whole.model) == (2, 1, "network-3")


def test_windows_are_where_they_are_said_to_be() -> None:
    samples, network = _noise(12), _Network()
    third = network.embed(samples[None, 3 * _SECOND : 5 * _SECOND])[0]
    found = _result(network, samples, []).segments[3, :48].astype(np.float32)
    np.testing.assert_allclose(found, third / np.linalg.norm(third), atol=1e-3)


@pytest.mark.parametrize(("seconds", "windows"), [(1, 1), (2, 1), (2.1, 2), (9, 8), (9.1, 9), (10, 9), (17, 16)])
def test_every_sample_is_in_a_window(seconds: float, windows: int) -> None:
    assert len(_result(_Network(), _noise(seconds), []).segments) == windows


def test_silence_is_not_asked_for() -> None:
    network = _Network()
    result = _result(network, np.concatenate([_noise(3), np.zeros(5 * _SECOND, np.float32)]), [])
    assert sum(network.asked) == 3
    assert not result.segments[3:].any()
    silent = WindowFeature(network)
    silent.process(np.zeros(5 * _SECOND, np.float32))
    assert silent.finish() == Unknown("SILENT", "Nothing in the recording is above -70 dBFS.")


def test_too_short() -> None:
    feature = WindowFeature(_Network())
    feature.process(_noise(0.9))
    result = feature.finish()
    assert isinstance(result, Unknown)
    assert result.reason == "TOO_SHORT"


@pytest.mark.parametrize("wrong", [np.ones((8, 513)), np.ones((7, 10)), np.ones(8), np.full((8, 10), np.nan)])
def test_a_model_that_answers_nonsense_is_an_error(wrong: Samples) -> None:
    class Broken(_Network):
        def embed(self, windows: Samples) -> Samples:
            return wrong

    with pytest.raises(ValueError, match="network-3 made"):
        WindowFeature(Broken()).process(_noise(20))


def test_what_the_model_raises_is_raised() -> None:
    class Down(_Network):
        def embed(self, windows: Samples) -> Samples:
            raise TimeoutError("no answer within 5 s")

    with pytest.raises(TimeoutError, match="no answer"):
        WindowFeature(Down()).process(_noise(20))
