"""Features of recordings as messages: what is new in them, and their long lists apart from the rest."""

from __future__ import annotations

from typing import TypeAlias

from contrafact.v1 import analysis_pb2
from google.protobuf.message import Message

from servers.analyzer.version import ANALYZER, EMBEDDINGS

Feature: TypeAlias = "analysis_pb2.Feature.ValueType"

# The fields of Features and their numbers as Feature.
FEATURES: dict[str, Feature] = {
    name.removeprefix("FEATURE_").lower(): value for name, value in analysis_pb2.Feature.items() if value
}
_LISTS = {"onsets": ("seconds",), "tempo": ("beat_seconds", "downbeats"), "pitch": ("contour_hz",)}


def is_current(analyzer: str, features: analysis_pb2.Features, embedding_model: str) -> bool:
    """Whether features of that version of the analyzer, or of a newer release's, need not be made anew.

    They must be when another model than ``embedding_model`` has embedded them.
    """
    return int(analyzer) >= int(ANALYZER) and features.embedding.model in ("", embedding_model)


def version(embedding_model: str) -> str:
    """By what analyses are made now, as one name: those of one name are the same."""
    return ANALYZER if embedding_model == EMBEDDINGS else f"{ANALYZER} {embedding_model}"


def split(features: analysis_pb2.Features) -> tuple[analysis_pb2.Features, analysis_pb2.Features]:
    """Features without their long lists, which are what the FULL view adds, and the lists.

    Merged, as messages are, they are the whole again.
    """
    summary, details = analysis_pb2.Features(), analysis_pb2.Features()
    summary.CopyFrom(features)
    for name, lists in _LISTS.items():
        if features.HasField(name):  # type: ignore[arg-type]
            feature: Message = getattr(summary, name)
            for field in lists:
                getattr(getattr(details, name), field).extend(getattr(feature, field))
                feature.ClearField(field)
    return summary, details


def told(features: analysis_pb2.Features) -> list[Feature]:
    """Which features these are, those that could not be told included, by number."""
    known = {number for name, number in FEATURES.items() if features.HasField(name)}  # type: ignore[arg-type]
    return sorted(known | {unknown.feature for unknown in features.unknown})


class Growing:
    """Features that come one after the other, in any number of parts, some of them perhaps twice."""

    def __init__(self) -> None:
        self.features = analysis_pb2.Features()
        self._told: set[Feature] = set()

    def add(self, part: analysis_pb2.Features) -> list[Feature]:
        """Take in what is not there yet, and return which features that are."""
        new = [feature for feature in told(part) if feature not in self._told]
        for name, number in FEATURES.items():
            if number in new and part.HasField(name):  # type: ignore[arg-type]
                getattr(self.features, name).CopyFrom(getattr(part, name))
        self.features.unknown.extend(unknown for unknown in part.unknown if unknown.feature in new)
        self._told.update(new)
        return new
