"""What was found, as the messages that carry it: none is larger than about a megabyte, and all numbers are finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from contrafact.engine.v1.analyzer_pb2 import AnalyzeResponse, SegmentEmbeddings
from contrafact.v1 import analysis_pb2
from google.protobuf.message import Message

from servers.analyzer.analysis import Feature, Found
from servers.analyzer.embedding import Embeddings
from servers.analyzer.unknown import Unknown
from servers.analyzer.waveform import Peaks, reduced

OVERVIEW_POINTS = 1000
PIECE_BYTES = 900_000
_LIST_VALUES = PIECE_BYTES // 10  # of at most ten bytes each
_LISTS = {Feature.ONSETS: "seconds", Feature.TEMPO: "beat_seconds", Feature.PITCH: "contour_hz"}


def responses(found: Found) -> list[AnalyzeResponse]:
    """What there is to send about a feature.

    Raises:
        ValueError: a number is not finite.
    """
    return list(_responses(found))


def _responses(found: Found) -> Iterator[AnalyzeResponse]:
    features = analysis_pb2.Features()
    result, name = found.result, found.feature.lower()
    if isinstance(result, Unknown):
        features.unknown.add(feature=_number(found.feature), reason=result.reason, message=result.message)
    elif isinstance(result, Peaks):
        features.waveform.CopyFrom(_drawn(reduced(result, 0, 0, OVERVIEW_POINTS)))
    elif isinstance(result, Embeddings):
        _fill(features.embedding, {"model": result.model, "values": result.track})
    else:
        _fill(getattr(features, name), {field.name: getattr(result, field.name) for field in fields(result)})
    yield from _parts(features, name, _LISTS.get(found.feature))
    if isinstance(result, Peaks):
        yield from (AnalyzeResponse(waveform=piece) for piece in _waveform(result))
    elif isinstance(result, Embeddings):
        yield from (AnalyzeResponse(segments=piece) for piece in _segments(result))


def _number(feature: Feature) -> analysis_pb2.Feature.ValueType:
    return analysis_pb2.Feature.Value(f"FEATURE_{feature}")


def _fill(message: Message, values: dict[str, Any]) -> None:
    """Set the fields of ``message`` that have these names; those that are None remain absent."""
    for name, value in values.items():
        if value is None:
            continue
        if is_dataclass(value):
            inner = getattr(message, name)
            inner.SetInParent()
            _fill(inner, {field.name: getattr(value, field.name) for field in fields(value)})
        elif isinstance(value, np.ndarray | list | tuple):
            _extend(message, name, value)
        else:
            if isinstance(value, float | np.floating) and not math.isfinite(value):
                raise ValueError(f"{name} is {value}")
            setattr(message, name, value)


def _extend(message: Message, name: str, values: Iterable[Any]) -> None:
    field = getattr(message, name)
    items = values.tolist() if isinstance(values, np.ndarray) else list(values)
    if items and is_dataclass(items[0]):
        for item in items:
            _fill(field.add(), {each.name: getattr(item, each.name) for each in fields(item)})
        return
    if items and isinstance(items[0], float) and not np.isfinite(items).all():
        raise ValueError(f"{name} are not all finite")
    field.extend(items)


def _parts(features: analysis_pb2.Features, name: str, long: str | None) -> Iterator[AnalyzeResponse]:
    """``features`` with at most so much of its long list, then the rest of that."""
    if long is None:
        yield AnalyzeResponse(features=features)
        return
    values = list(getattr(getattr(features, name), long)) if features.HasField(name) else []  # type: ignore[arg-type]
    if len(values) > _LIST_VALUES:
        del getattr(getattr(features, name), long)[_LIST_VALUES:]
    yield AnalyzeResponse(features=features, more=len(values) > _LIST_VALUES)
    for start in range(_LIST_VALUES, len(values), _LIST_VALUES):
        part = AnalyzeResponse(more=start + _LIST_VALUES < len(values))
        getattr(getattr(part.features, name), long).extend(values[start : start + _LIST_VALUES])
        yield part


def _waveform(peaks: Peaks) -> Iterator[analysis_pb2.Waveform]:
    """All of it, in pieces."""
    most = PIECE_BYTES // 3
    for start in range(0, len(peaks.minima), most):
        yield _drawn(
            Peaks(
                peaks.minima[start : start + most],
                peaks.maxima[start : start + most],
                peaks.rms[start : start + most],
                start_seconds=peaks.start_seconds + start / peaks.points_per_second,
                points_per_second=peaks.points_per_second,
            )
        )


def _drawn(peaks: Peaks) -> analysis_pb2.Waveform:
    return analysis_pb2.Waveform(
        start_seconds=peaks.start_seconds,
        points_per_second=peaks.points_per_second,
        minima=peaks.minima.tobytes(),
        maxima=peaks.maxima.tobytes(),
        rms=peaks.rms.tobytes(),
    )


def _segments(embeddings: Embeddings) -> Iterator[SegmentEmbeddings]:
    values = np.ascontiguousarray(embeddings.segments, "<f2")
    if not np.isfinite(values).all():
        raise ValueError("segments are not all finite")
    dimensions = values.shape[1]
    most = PIECE_BYTES // (2 * dimensions)
    for start in range(0, len(values), most):
        yield SegmentEmbeddings(
            model=embeddings.model,
            window_seconds=embeddings.window_seconds,
            hop_seconds=embeddings.hop_seconds,
            dimensions=dimensions,
            values=values[start : start + most].tobytes(),
        )
