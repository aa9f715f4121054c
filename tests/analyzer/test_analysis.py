"""Whole analyses without a server: every input is survived, what cannot be told is not told, memory is bounded."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator

import numpy as np
import psutil
import pytest
from contrafact.engine.v1.analyzer_pb2 import AnalyzeSpec
from google.protobuf.message import Message

from servers.analyzer.analysis import CHUNK_SECONDS, LOWEST_RATE, Analysis, Feature, Found, analyze
from servers.analyzer.incoming import Incoming
from servers.analyzer.messages import PIECE_BYTES, responses
from servers.analyzer.onsets import Onsets
from servers.analyzer.unknown import Unknown
from servers.platform.errors import ApiError
from tests.analyzer.streams import ALL, RATE, Answer, Samples, band, block, expected, requests_of, spec_of

NEEDS_RATE = {"ONSETS", "TEMPO", "KEY", "PITCH", "EMBEDDING"}


def numbers(message: Message) -> Iterator[float]:
    """All numbers in a message."""
    for field, value in message.ListFields():
        for each in value if field.is_repeated else [value]:
            if isinstance(each, Message):
                yield from numbers(each)
            elif isinstance(each, int | float):
                yield each


def test_the_music_is_recognised() -> None:
    answer = expected(band(20.0))
    features = answer.features
    assert set(answer.order) == set(ALL.values())
    assert answer.order[:4] == ["WAVEFORM", "QUALITY", "LOUDNESS", "STEREO"]
    assert features.key.tonic == 0
    assert features.key.mode == 1
    assert 380 < features.pitch.median_hz < 540
    assert features.onsets.count >= 20  # of 39 drum beats and 19 changes of the melody on them
    assert len(features.waveform.rms) == 1000
    assert len(answer.waveform.rms) == 2000
    assert math.isclose(np.linalg.norm(features.embedding.values), 1, abs_tol=1e-3)
    assert answer.segments.dimensions == len(features.embedding.values)


def in_cuts(spec: AnalyzeSpec, samples: Samples, cuts: list[int]) -> Answer:
    """As the server does it, but for the threads."""
    analysis = Analysis(spec.sample_rate, spec.channels, spec.frames)
    incoming, answer = Incoming(spec, analysis.chunk_frames), Answer([])

    def give(mono: Samples) -> None:
        for lane in analysis.others:
            lane.process(mono)

    for request in requests_of(spec, samples, cuts):
        if request.HasField("block"):
            for chunk in incoming.add(request.block):
                give(analysis.native.process(chunk))
    incoming.check_complete()
    give(analysis.native.rest())
    for lane in (analysis.native, *analysis.others):
        for found in lane.results():
            for message in responses(found):
                answer.add(message)
    return answer


@pytest.mark.parametrize("rate", [8000, 44_100])
def test_the_result_does_not_depend_on_the_cuts(rate: int) -> None:
    samples = band(12.3, rate=rate)
    spec, end = spec_of(samples, rate=rate), samples.shape[1]
    whole = in_cuts(spec, samples, [end])
    random = np.random.default_rng(1)
    for cuts in (sorted(random.integers(1, end, 200).tolist()), [1, 2, 3, end - 1], list(range(0, end, 997))):
        other = in_cuts(spec, samples, cuts)
        assert other.features == whole.features
        assert other.waveform == whole.waveform
        assert other.segments == whole.segments


def click(frames: int) -> Samples:
    samples = np.zeros((2, frames), np.float32)
    samples[:, frames // 2] = 1
    return samples


def speech(seconds: float = 6.0, rate: int = RATE) -> Samples:
    """Buzzes with formants that glide, in syllables and pauses."""
    time = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.4 * time)
    buzz = np.sign(np.sin(2 * np.pi * np.cumsum(pitch) / rate)) * 0.3
    syllables = np.maximum(0, np.sin(2 * np.pi * 3.1 * time + 2 * np.sin(time)))
    return (buzz * syllables * (time % 2.3 < 1.7))[None].astype(np.float32)


HOSTILE: dict[str, Callable[[], Samples]] = {
    "silence": lambda: np.zeros((2, 5 * RATE), np.float32),
    "nearly silence": lambda: (np.random.default_rng(0).standard_normal((2, 5 * RATE)) * 1e-5).astype(np.float32),
    "denormal": lambda: np.full((2, 5 * RATE), 1e-40, np.float32),
    "DC": lambda: np.full((2, 5 * RATE), 0.5, np.float32),
    "one click": lambda: click(5 * RATE),
    "10 ms": lambda: band(0.01),
    "1 sample": lambda: np.ones((1, 1), np.float32),
    "1 silent sample": lambda: np.zeros((2, 1), np.float32),
    "2 samples": lambda: np.array([[1, -1]], np.float32),
    "full scale noise": lambda: np.random.default_rng(0).uniform(-1, 1, (2, 5 * RATE)).astype(np.float32),
    "the loudest there is": lambda: np.tile(np.array([[1e6], [-1e6]], np.float32), 5 * RATE),
    "one channel only": lambda: np.concatenate([band(5, channels=1), np.zeros((1, 5 * RATE), np.float32)]),
    "opposite channels": lambda: np.concatenate([band(5, channels=1), -band(5, channels=1)]),
    "square wave": lambda: np.sign(np.sin(np.arange(5 * RATE) * 0.03))[None].astype(np.float32),
    "speech": speech,
    "mono": lambda: band(5, channels=1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_every_input_is_survived(name: str) -> None:
    samples = HOSTILE[name]()
    answer = expected(samples)
    asked = set(ALL.values()) - ({"STEREO"} if len(samples) == 1 else set())
    assert set(answer.order) == asked  # every feature is told, or why not, once
    for message in (answer.features, answer.waveform, answer.segments):
        assert all(math.isfinite(number) for number in numbers(message))
    assert all(unknown.message for unknown in answer.features.unknown)


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("silence", dict.fromkeys(["LOUDNESS", "STEREO", *NEEDS_RATE], "SILENT")),
        ("denormal", dict.fromkeys(["LOUDNESS", "STEREO", *NEEDS_RATE], "SILENT")),
        ("10 ms", dict.fromkeys(["LOUDNESS", "ONSETS", "TEMPO", "KEY", "PITCH", "EMBEDDING"], "TOO_SHORT")),
        ("1 sample", dict.fromkeys(["LOUDNESS", "ONSETS", "TEMPO", "KEY", "PITCH", "EMBEDDING"], "TOO_SHORT")),
        ("DC", {"TEMPO": "NO_BEAT", "KEY": "NO_TONALITY", "PITCH": "NO_PITCH"}),
        ("the loudest there is", {"TEMPO": "NO_BEAT", "KEY": "NO_TONALITY", "PITCH": "NO_PITCH"}),
        ("one click", {"TEMPO": "NO_BEAT", "KEY": "NO_TONALITY", "PITCH": "NO_PITCH"}),
        ("full scale noise", {"TEMPO": "NO_BEAT", "KEY": "NO_TONALITY", "PITCH": "NO_PITCH"}),
    ],
)
def test_what_cannot_be_told_is_not_told(name: str, reasons: dict[str, str]) -> None:
    answer = expected(HOSTILE[name]())
    assert {feature: answer.reason(feature) for feature in reasons} == reasons


@pytest.mark.parametrize("rate", [1000, 4000, 8000, 11_025, 22_050, 48_000, 96_000, 192_000, 384_000])
def test_every_sample_rate(rate: int) -> None:
    samples = band(5, rate=rate)
    answer = expected(samples, rate=rate)
    assert set(answer.order) == set(ALL.values())
    for name in NEEDS_RATE:
        assert (answer.reason(name) == "SAMPLE_RATE_TOO_LOW") == (rate < LOWEST_RATE)
    if rate >= 8000:
        assert answer.features.key.tonic == 0
        assert 380 < answer.features.pitch.median_hz < 540


def test_only_what_was_asked_for_is_measured() -> None:
    assert expected(band(5), names=["TEMPO"]).order == ["TEMPO"]
    analysis = Analysis(RATE, 2, RATE, [Feature.STEREO, Feature.PITCH])
    chunk = band(1)
    analysis.others[0].process(analysis.native.process(chunk))
    assert set(analysis.cpu_seconds()) == {"STEREO", "SHARED", "PITCH"}
    assert Analysis(RATE, 2, RATE, [Feature.LOUDNESS]).others == ()


def test_each_feature_is_the_same_alone() -> None:
    samples = band(8)
    together = expected(samples).features
    for name in ALL.values():
        alone = expected(samples, names=[name]).features
        assert getattr(alone, name.lower()) == getattr(together, name.lower())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.1e6])
def test_what_is_no_audio_is_refused(value: float) -> None:
    samples = band(1)
    samples[1, -1] = value
    with pytest.raises(ApiError, match="not finite, or beyond") as refusal:
        Incoming(spec_of(samples), RATE).add(block(0, samples).block)
    assert (refusal.value.reason, refusal.value.fields[0][0]) == ("INVALID_SAMPLES", "block.samples")


def test_a_number_that_is_not_finite_is_no_message() -> None:
    for result in (Onsets(1, math.nan, (0.0,)), Onsets(1, 0.1, (math.inf,))):
        with pytest.raises(ValueError, match=r"inf|nan|finite"):
            responses(Found(Feature.ONSETS, result))


def test_long_lists_come_in_parts() -> None:
    seconds = tuple(float(second) for second in range(300_000))
    messages = responses(Found(Feature.ONSETS, Onsets(len(seconds), 1.0, seconds)))
    assert [message.more for message in messages] == [True] * (len(messages) - 1) + [False]
    assert max(message.ByteSize() for message in messages) <= PIECE_BYTES
    whole = messages[0].features
    for message in messages[1:]:
        whole.MergeFrom(message.features)
    assert tuple(whole.onsets.seconds) == seconds
    assert (whole.onsets.count, whole.onsets.rate) == (300_000, 1.0)


def test_unknown_is_told_with_its_reason() -> None:
    (message,) = responses(Found(Feature.KEY, Unknown("NO_TONALITY", "It has none.")))
    (unknown,) = message.features.unknown
    assert (ALL[unknown.feature], unknown.reason, unknown.message) == ("KEY", "NO_TONALITY", "It has none.")
    assert not message.features.HasField("key")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hours_need_no_more_memory_than_three_minutes() -> None:
    """All but the pitch, whose model takes a minute for it; its contour is bounded by a test of its own."""
    rate, seconds = 8000, 7200
    analysis = Analysis(rate, 1, seconds * rate, set(Feature) - {Feature.PITCH})
    music = band(60, rate=rate, channels=1)
    process, resident = psutil.Process(), dict[int, int]()
    (other,) = analysis.others
    for second in range(0, seconds, CHUNK_SECONDS):
        at = second % 60 * rate
        other.process(analysis.native.process(music[:, at : at + analysis.chunk_frames]))
        if second in (180, seconds - 1):
            gc.collect()
            resident[second] = process.memory_info().rss
    # What is kept of a second, 2 kB: 44 frames of an envelope, 100 points of a waveform, a fifth of an embedding.
    assert resident[seconds - 1] - resident[180] < 40_000_000
    results = {found.feature: found for found in analysis.native.results()}
    other.process(analysis.native.rest())
    results |= {found.feature: found for found in other.results()}
    assert process.memory_info().rss - resident[180] < 200_000_000
    assert len(results[Feature.WAVEFORM].result.minima) == 100 * seconds
    assert results[Feature.KEY].result.tonic == 0
    messages = [message for found in results.values() for message in responses(found)]
    assert max(message.ByteSize() for message in messages) < 1_000_000


def test_analyze_gives_all_results_once() -> None:
    found = [each.feature for each in analyze(band(1), RATE)]
    assert sorted(found) == sorted(Feature)
