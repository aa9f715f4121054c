"""Sounds, stems and libraries as messages, and what comes back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from contrafact.engine.v1.grains_pb2 import (
    BuildReport,
    BuildResponse,
    GrainsBlock,
    GrainsEnd,
    Note,
    NoteBatch,
    RenderReport,
    RenderRequest,
    RenderResponse,
    RenderSpec,
    TraceReport,
    TraceResponse,
    TraceSpec,
)
from contrafact.v1 import grain_pb2
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from servers.grains.building import build
from servers.grains.library import decode, encode
from servers.grains.messages import batches, pieces
from servers.grains.notes import from_messages, join, to_messages
from servers.grains.preview import preview
from servers.grains.rendering import Rendering
from servers.grains.trace import Tracing
from tests.grains.sounds import RATE, tone

Samples = NDArray[np.float32]


def sound(seconds: int, *, channels: int = 2, seed: int = 0) -> Samples:
    """A tone of a third of a second at the beginning of each half, of pitches by chance; silence between."""
    rng = np.random.default_rng(seed)
    samples = np.zeros((channels, seconds * RATE), np.float32)
    for start in range(0, seconds * RATE, RATE // 2):
        part = tone(110 * 2 ** rng.uniform(0, 3), 0.33) * rng.uniform(0.3, 1)
        samples[:, start : start + len(part)] += part
    return samples


def spec_of(samples: Samples, kind: Any = TraceSpec, **more: object) -> Any:
    """A BuildSpec or TraceSpec."""
    return kind(sample_rate=RATE, channels=len(samples), frames=samples.shape[1], **more)


def block(start: int, samples: Samples) -> GrainsBlock:
    return GrainsBlock(start=start, samples=samples.astype("<f4").tobytes())


def audio_requests(kind: Any, spec: Any, samples: Samples, cuts: Iterable[int] = ()) -> Iterator[Any]:
    """A whole BuildRequest or TraceRequest stream; blocks end at ``cuts`` or, without any, after each second."""
    edges = sorted({0, samples.shape[1], *(cuts or range(0, samples.shape[1], RATE))})
    yield kind(spec=spec)
    for begin, end in pairwise(edges):
        yield kind(block=block(begin, samples[:, begin:end]))
    yield kind(end=GrainsEnd())


@dataclass(frozen=True)
class Built:
    """A library as it came: its bytes, what is heard of it, and the report."""

    data: bytes
    preview: Samples
    report: BuildReport

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def built_of(messages: Iterable[BuildResponse], channels: int) -> Built:
    """What came, which must be in order."""
    data, report, progress = b"", None, 0.0
    heard: list[Samples] = []
    for message in messages:
        assert report is None
        if message.HasField("report"):
            report = message.report
        elif message.HasField("library"):
            assert message.library.offset == len(data)
            data += message.library.data
        elif message.HasField("preview"):
            assert message.preview.start == sum(part.shape[1] for part in heard)
            heard.append(np.frombuffer(message.preview.samples, "<f4").reshape(channels, -1))
        else:
            assert progress <= message.progress <= 1
            progress = message.progress
    assert report is not None
    return Built(data, np.concatenate(heard, axis=1), report)


def notes_of(messages: Iterable[TraceResponse], frames: int) -> tuple[list[Note], TraceReport]:
    """What came, which must be in order."""
    notes: list[Note] = []
    report, until = None, 0
    for message in messages:
        assert report is None
        if message.HasField("report"):
            report = message.report
        else:
            assert all(until <= note.start < message.notes.until for note in message.notes.notes)
            assert message.notes.until >= until
            notes += message.notes.notes
            until = message.notes.until
    assert report is not None
    assert until == frames
    return notes, report


def audio_of(messages: Iterable[RenderResponse], channels: int) -> tuple[bool, Samples, RenderReport]:
    """What came, which must be in order; first, whether the library was wanted."""
    first, *others = messages
    assert first.HasField("ready")
    parts, report, position = [np.zeros((channels, 0), np.float32)], None, 0
    for message in others:
        assert report is None
        if message.HasField("report"):
            report = message.report
            continue
        if not message.block.samples:  # a sign of life
            continue
        assert message.block.start == position
        parts.append(np.frombuffer(message.block.samples, "<f4").reshape(channels, -1))
        position += parts[-1].shape[1]
    assert report is not None
    return first.ready.library_wanted, np.concatenate(parts, axis=1), report


def play_spec(library: bytes, frames: int, *, channels: int = 2, priority: int = 0, **settings: object) -> RenderSpec:
    """What to play; the rest are GrainSettings."""
    return RenderSpec(
        sample_rate=RATE,
        channels=channels,
        frames=frames,
        library_sha256=hashlib.sha256(library).hexdigest(),
        library_bytes=len(library),
        priority=priority,
        settings=grain_pb2.GrainSettings(**settings),  # type: ignore[arg-type]
    )


def library_requests(library: bytes) -> Iterator[RenderRequest]:
    return (RenderRequest(library=piece) for piece in pieces(library))


def note_requests(notes: Sequence[Note], frames: int, sizes: Sequence[int] = (100,)) -> Iterator[RenderRequest]:
    """Notes in batches of ``sizes``, again and again, and the end."""
    begin, turn = 0, 0
    while begin < len(notes):
        end = begin + sizes[turn % len(sizes)]
        until = notes[end].start if end < len(notes) else frames
        yield from (RenderRequest(notes=batch) for batch in batches(notes[begin:end], until))
        begin, turn = end, turn + 1
    yield RenderRequest(end=GrainsEnd())


def batches_of(notes: Sequence[Note], frames: int, sizes: Sequence[int] = (100,)) -> list[NoteBatch]:
    """The same as batches."""
    return [request.notes for request in note_requests(notes, frames, sizes) if request.HasField("notes")]


# What is to come, made without a server, in one thread as it does: products of matrices are rounded otherwise.


@lru_cache
def expected_library(seconds: int = 12, seed: int = 0, **cut: object) -> Built:
    with threadpool_limits(1):
        library = build(sound(seconds, seed=seed), RATE, grain_pb2.Cut(**cut), lambda share: None)  # type: ignore[arg-type]
        return Built(encode(library), preview(library), BuildReport())


def expected_notes(samples: Samples) -> list[Note]:
    with threadpool_limits(1):
        tracing = Tracing(RATE, *samples.shape)
        return to_messages(join([tracing.process(samples), tracing.finish()]))


def expected_audio(library: bytes, notes: Sequence[Note], spec: RenderSpec) -> Samples:
    with threadpool_limits(1):
        rendering = Rendering(decode(library), spec)
        parts = [rendering.add(from_messages(notes), spec.frames), rendering.finish()]
        return np.concatenate(parts, axis=1)


def made_notes(count: int, frames: int, seed: int = 0) -> list[Note]:
    """Notes by chance."""
    rng = np.random.default_rng(seed)
    starts = np.sort(rng.choice(frames // 100, count, replace=False)) * 100
    lengths = np.diff(starts, append=frames)
    return [
        Note(
            start=start,
            frames=length,
            pitch_hz=110 * 2 ** rng.uniform(0, 3),
            peak=rng.uniform(0.05, 0.5),
            rms=0.1,
            brightness_hz=1000,
            levels=bytes([180] * ((length - 1) * 50 // RATE + 1)),
        )
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
    ]
