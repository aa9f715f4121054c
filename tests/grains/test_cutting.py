"""Where sounds are cut: at silences as librosa does, at onsets to the sample, evenly with some chance."""

from __future__ import annotations

import numpy as np
import pytest
from contrafact.v1 import grain_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from servers.grains import cutting
from servers.grains.cutting import CannotCut, sounding, spans_of
from servers.media.reference import librosa
from tests.grains.signals import RATE, Samples, noise, sawtooth

ONSETS, FIXED = grain_pb2.SEGMENTATION_ONSETS, grain_pb2.SEGMENTATION_FIXED


def cut_of(samples: Samples, cut: grain_pb2.Cut | None = None) -> NDArray:
    return spans_of(np.atleast_2d(samples), RATE, cut or grain_pb2.Cut(), lambda share: None)


def rest(seconds: float) -> Samples:
    return np.zeros(round(seconds * RATE), np.float32)


def bursts(seconds: float, seed: int, channels: int) -> Samples:
    """Noise that comes, goes and fades, in each channel for itself."""
    random = np.random.default_rng(seed)
    count = round(seconds * RATE)
    gains = 10 ** (-random.uniform(0, 60, (channels, 1 + count // 3000)) / 20)
    return (random.standard_normal((channels, count)) * np.repeat(gains, 3000, axis=1)[:, :count]).astype(np.float32)


@pytest.mark.parametrize("top_db", [3, 20, 45.5, 100])
@pytest.mark.parametrize("frames", [1, 511, 2047, 2048, 2049, 40_000, 2048 * 512, 2048 * 512 + 1, 1_200_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_sounding_as_librosa_does(frames: int, channels: int, top_db: float) -> None:
    samples = bursts(frames / RATE, frames, channels)[:, :frames]

    found = sounding(samples, top_db, lambda share: None)

    np.testing.assert_array_equal(found, librosa().effects.split(samples, top_db=top_db))


def test_silences() -> None:
    tones = [np.concatenate([rest(0.3), sawtooth(hz, 0.4)]) for hz in (110, 220, 330)]
    spans = cut_of(np.concatenate([*tones, rest(0.2)]))

    begins = (0.3 + 0.7 * np.arange(3)) * RATE
    assert spans.shape == (3, 2)
    assert (spans[:, 0] <= begins).all()
    assert (spans[:, 0] > begins - 2048).all()
    assert (spans[:, 1] >= begins + 0.4 * RATE).all()


def test_top_db() -> None:
    loud, quiet = sawtooth(220, 0.3), sawtooth(330, 0.3) * np.float32(0.03)
    samples = np.concatenate([rest(0.3), loud, rest(0.3), quiet, rest(0.3)])

    assert len(cut_of(samples)) == 1
    assert len(cut_of(samples, grain_pb2.Cut(top_db=60))) == 2


def test_short_pieces_are_dropped() -> None:
    """The only piece that can be: what begins to sound at the very end."""
    end = np.concatenate([sawtooth(220, 0.5), rest(0.5), noise(np.random.default_rng(0), 0.5)[:100]])
    end = end[-(len(end) // 512 * 512 + 100) :]
    for extra in range(0, 512, 64):
        samples = np.concatenate([end, rest(extra / RATE)])
        expected = librosa().effects.split(samples, top_db=20)
        expected = expected[expected[:, 1] - expected[:, 0] >= 512]
        np.testing.assert_array_equal(cut_of(samples), expected)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (rest(1), "STYLE_SILENT"),
        (np.full(RATE, 10 ** (-70.1 / 20), np.float32), "STYLE_SILENT"),
        (np.full(511, 0.5, np.float32), "NO_GRAINS"),
        (np.full(1, 0.5, np.float32), "NO_GRAINS"),
    ],
)
def test_cannot_cut(samples: Samples, reason: str) -> None:
    with pytest.raises(CannotCut) as error:
        cut_of(samples)
    assert error.value.reason == reason


def test_too_many_grains(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = sawtooth(220, 1.0)
    cut = grain_pb2.Cut(segmentation=FIXED, grain_ms=100)
    assert len(cut_of(samples, cut)) == 10
    monkeypatch.setattr(cutting, "MAX_GRAINS", 9)
    with pytest.raises(CannotCut) as error:
        cut_of(samples, cut)
    assert error.value.reason == "TOO_MANY_GRAINS"


@pytest.mark.parametrize("inverted", [False, True])
def test_onsets(inverted: bool) -> None:
    """Tones that follow each other at once are cut apart where they begin, in whatever phase the channels are."""
    tones = [sawtooth(hz, 0.3) * np.linspace(1, 0.3, round(0.3 * RATE)).astype(np.float32) for hz in (220, 330, 495)]
    left = np.concatenate([*tones, rest(0.3)])
    left[: -len(rest(0.3))][-4000:] *= np.linspace(1, 0, 4000, dtype=np.float32)  # its end is no onset
    samples = np.stack([left, -left if inverted else 0 * left])
    begins = np.arange(3) * round(0.3 * RATE)

    whole = cut_of(samples)
    spans = cut_of(samples, grain_pb2.Cut(segmentation=ONSETS))

    assert len(whole) == 1
    assert len(spans) == 3
    assert np.abs(spans[:, 0] - begins).max() <= 0.005 * RATE
    np.testing.assert_array_equal(spans[1:, 0], spans[:-1, 1])
    assert (spans[0, 0], spans[-1, 1]) == tuple(whole[0])


def test_onsets_of_clicks_to_the_sample() -> None:
    random = np.random.default_rng(0)
    places = np.cumsum(random.integers(5_000, 12_000, 120))  # over several blocks of 10 s
    samples = 0.0003 * random.standard_normal(places[-1] + 9000)
    for place in places:
        samples[place : place + 400] += np.exp(-np.arange(400) / 60) * random.choice([-0.5, 0.5])
    # One piece that sounds throughout.
    spans = cut_of(samples.astype(np.float32), grain_pb2.Cut(segmentation=ONSETS, top_db=100))

    np.testing.assert_array_equal(spans[1:, 0], places)


def test_onsets_too_near_leave_pieces_whole() -> None:
    pieces = np.array([[1000, 3000], [5000, 5600], [8000, 9100]])
    onsets = np.array([1100, 1400, 1512, 2000, 2100, 2488, 2489, 5300, 8512, 8600])

    spans = cutting._at_onsets(pieces, onsets)

    assert spans.tolist() == [[1000, 1512], [1512, 2100], [2100, 3000], [5000, 5600], [8000, 8512], [8512, 9100]]


def test_fixed() -> None:
    samples = sawtooth(220, 1.0)
    whole = cut_of(samples)

    spans = cut_of(samples, grain_pb2.Cut(segmentation=FIXED))

    lengths = spans[:, 1] - spans[:, 0]
    assert (np.abs(lengths[:-1] - 0.12 * RATE) <= 1).all()
    assert 0.06 * RATE <= lengths[-1] <= 0.18 * RATE + 1
    assert (spans[0, 0], spans[-1, 1]) == tuple(whole[0])


def test_chance_depends_on_the_seed() -> None:
    samples = sawtooth(220, 2.0)

    def spans(seed: int) -> list[list[int]]:
        cut = grain_pb2.Cut(segmentation=FIXED, grain_ms=50, jitter=0.3, seed=seed)
        return cut_of(samples, cut).tolist()

    assert spans(1) == spans(1)
    assert spans(1) != spans(2)


@given(
    edges=st.lists(st.integers(512, 60_000), min_size=1, max_size=5),
    length=st.floats(96, 40_000),
    jitter=st.floats(0, 0.5),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_fixed_grains_fill_pieces(edges: list[int], length: float, jitter: float, seed: int) -> None:
    ends = np.cumsum(np.array(edges) + 100)
    pieces = np.stack([ends - edges, ends], axis=1)

    spans = cutting._evenly(pieces, length, jitter, seed)

    lengths = spans[:, 1] - spans[:, 0]
    assert lengths.min() >= 512
    longest = max(512, length * (1 + jitter))
    assert lengths.max() <= longest + max(512, length / 2) + 2
    cuts = set(spans[:, 0].tolist()) | set(spans[:, 1].tolist())
    assert cuts >= set(pieces.ravel().tolist())
    inner = ~np.isin(spans[:, 1], pieces[:, 1])
    assert (lengths[inner] >= max(512, length * (1 - jitter)) - 1).all()
    assert (lengths[inner] <= longest + 1).all()
    assert lengths.sum() == sum(edges)
    assert (spans[1:, 0] >= spans[:-1, 1]).all()


def test_progress_is_told_and_can_end_the_work() -> None:
    shares: list[float] = []
    samples = np.atleast_2d(bursts(70, 0, 1))
    spans_of(samples, RATE, grain_pb2.Cut(segmentation=ONSETS), shares.append)
    assert shares == sorted(shares)
    assert len(shares) > 10
    assert 0 <= shares[0] <= shares[-1] <= 1

    def stop(share: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        spans_of(samples, RATE, grain_pb2.Cut(), stop)
