"""Audio to analyse, as messages, and what comes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from contrafact.engine.v1.analyzer_pb2 import (
    AnalyzeBlock,
    AnalyzeEnd,
    AnalyzeReport,
    AnalyzeRequest,
    AnalyzeResponse,
    AnalyzeSpec,
    SegmentEmbeddings,
)
from contrafact.v1 import analysis_pb2
from contrafact.v1.analysis_pb2 import Features, Waveform
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from servers.analyzer.analysis import analyze
from servers.analyzer.messages import responses

Samples = NDArray[np.float32]
RATE = 44_100
ALL = {number: name.removeprefix("FEATURE_") for name, number in analysis_pb2.Feature.items() if number}
END = AnalyzeRequest(end=AnalyzeEnd())


def band(seconds: float, *, rate: int = RATE, channels: int = 2, seed: int = 0) -> Samples:
    """A bass drum at 120 BPM, a quiet chord and a loud melody of C5 and G4 in C major, and some noise."""
    random, time = np.random.default_rng(seed), np.arange(round(seconds * rate)) / rate
    drum = np.sin(2 * np.pi * 60 * (time % 0.5)) * np.exp(-20 * (time % 0.5))
    chord = sum(np.sin(2 * np.pi * hertz * time) for hertz in (261.6, 329.6, 392.0))
    phase = 2 * np.pi * np.where(time % 2 < 1, 523.3, 392.0) * time
    melody = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 7))
    both = 0.2 * drum + 0.02 * chord + 0.3 * melody
    return (both + 0.001 * random.standard_normal((channels, len(time)))).astype(np.float32)


def spec_of(samples: Samples, *, rate: int = RATE, **more: object) -> AnalyzeSpec:
    return AnalyzeSpec(sample_rate=rate, channels=len(samples), frames=samples.shape[1], **more)  # type: ignore[arg-type]


def block(start: int, samples: Samples) -> AnalyzeRequest:
    return AnalyzeRequest(block=AnalyzeBlock(start=start, samples=samples.astype("<f4").tobytes()))


def requests_of(spec: AnalyzeSpec, samples: Samples, cuts: Iterable[int] = ()) -> Iterator[AnalyzeRequest]:
    """A whole analysis; blocks end at ``cuts`` or, without any, after each second."""
    edges = sorted({0, samples.shape[1], *(cuts or range(0, samples.shape[1], spec.sample_rate))})
    yield AnalyzeRequest(spec=spec)
    for begin, end in pairwise(edges):
        yield block(begin, samples[:, begin:end])
    yield END


class Answer:
    """All that came back of one analysis, which must have come in order.

    Attributes:
        features: all of them.
        order: names of the features, in the order in which they came.
        waveform: the whole, and no piece of more than a megabyte.
        segments: all of them.
        report: the report.
    """

    def __init__(self, messages: Iterable[AnalyzeResponse]) -> None:
        self.features = Features()
        self.order: list[str] = []
        self.waveform = Waveform()
        self.segments = SegmentEmbeddings()
        self.report: AnalyzeReport | None = None
        for message in messages:
            self.add(message)

    def add(self, message: AnalyzeResponse) -> None:
        """Take in what came next."""
        assert self.report is None
        assert message.ByteSize() < 1_000_000
        if message.HasField("report"):
            self.report = message.report
        elif message.HasField("features"):
            known = {descriptor.name.upper() for descriptor, _ in message.features.ListFields()} - {"UNKNOWN"}
            new = known | {ALL[unknown.feature] for unknown in message.features.unknown}
            assert not new & set(self.order)
            self.order += new
            self.features.MergeFrom(message.features)
        elif message.HasField("waveform"):
            here = len(self.waveform.rms) / message.waveform.points_per_second
            assert abs(message.waveform.start_seconds - here) < 1e-6
            for name in ("minima", "maxima", "rms"):
                setattr(self.waveform, name, getattr(self.waveform, name) + getattr(message.waveform, name))
        elif message.HasField("segments"):
            values = self.segments.values
            self.segments.MergeFrom(message.segments)
            self.segments.values = values + message.segments.values

    def reason(self, name: str) -> str:
        """Why a feature is unknown; "" if it is not."""
        return {ALL[unknown.feature]: unknown.reason for unknown in self.features.unknown}.get(name, "")


def expected(samples: Samples, *, rate: int = RATE, names: Sequence[str] = ()) -> Answer:
    """What is to come, made without a server, in one thread as it does: products of matrices are rounded otherwise."""
    from servers.analyzer.analysis import Feature

    with threadpool_limits(1):
        found = analyze(samples, rate, [Feature(name) for name in names])
        return Answer(message for each in found for message in responses(each))
