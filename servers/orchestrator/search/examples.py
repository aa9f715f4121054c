"""What results are to sound like: examples become one vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import grpc
import numpy as np
from contrafact.v1 import analysis_pb2, search_pb2

from servers.orchestrator.search.filters import check_filter
from servers.orchestrator.search.vectors import DIMENSIONS, Segments, Vector, padded, stored
from servers.platform.errors import ApiError, invalid, not_found
from servers.storage.database import Pool, Row

# Values of the embeddings of models that are known; those of others are taken as they come.
VALUES = {"contrafact-signal-1": 512}
_NOTHING = 1e-6  # a sum as short as this has no direction

_ANALYZED = """
SELECT t.id, a.sha256 IS NOT NULL AS analyzed, s.model, halfvec_send(s.embedding) AS embedding, s.bpm, s.key
FROM tracks t LEFT JOIN analyses a USING (sha256) LEFT JOIN sounds s ON s.track_id = t.id
WHERE t.owner = $1 AND t.id = ANY($2::uuid[])
"""
_SEGMENTS = "SELECT a.segments FROM tracks t JOIN analyses a USING (sha256) WHERE t.id = $1"


@dataclass(frozen=True)
class Target:
    """What examples ask for: their direction (None: there are no examples), and which tracks they are."""

    vector: Vector | None
    tracks: frozenset[UUID]


def check_query(query: search_pb2.TrackQuery, model: str, field: str) -> None:
    """INVALID_ARGUMENT if a query cannot be right, whatever tracks there are; ``field`` is its path in the request."""
    check_filter(query.filter, f"{field}.filter")
    for number, example in enumerate(query.examples):
        path = f"{field}.examples[{number}]"
        kind = example.WhichOneof("example")
        if kind == "segment" and example.segment.end_seconds <= example.segment.start_seconds:
            raise invalid("INVALID_RANGE", "a stretch ends after its beginning", f"{path}.segment.end_seconds")
        if kind == "embedding":
            _of_embedding(example.embedding, model, f"{path}.embedding")


async def target_of(
    pool: Pool, owner: str, examples: Sequence[search_pb2.Example], model: str, field: str = "query.examples"
) -> Target:
    """The direction of the weighted sum of ``examples``.

    Raises:
        ApiError: NOT_FOUND and FAILED_PRECONDITION, NOT_ANALYZED or NO_EMBEDDING, for an example that cannot be one;
            INVALID_ARGUMENT, EXAMPLES_CANCEL_OUT if nothing is left of them, and as ``check_query``.
    """
    names = [_track_of(example) for example in examples]
    rows = await analyzed_tracks(
        pool, owner, {f"{field}[{number}].{path}": name for number, (path, name) in enumerate(names) if name}
    )
    total = np.zeros(DIMENSIONS)
    for number, (example, (path, name)) in enumerate(zip(examples, names, strict=True)):
        at = f"{field}[{number}]"
        if not name:
            vector = _of_embedding(example.embedding, model, f"{at}.embedding")
        elif example.HasField("segment"):
            vector = await _of_segment(pool, rows[name], example.segment, model, f"{at}.segment")
        else:
            vector = _of_track(rows[name], model, f"{at}.{path}")
        total += (example.weight or 1.0) * vector
    if not examples:
        return Target(None, frozenset())
    if np.linalg.norm(total) < _NOTHING:
        raise invalid("EXAMPLES_CANCEL_OUT", "the examples and their weights cancel each other out", field)
    return Target(padded(total), frozenset(row["id"] for row in rows.values()))


async def analyzed_tracks(pool: Pool, owner: str, names: Mapping[str, str]) -> dict[str, Row]:
    """Rows of the analysed tracks of ``owner`` by name; ``names`` are those asked for, by the field that names them.

    Raises:
        ApiError: NOT_FOUND; FAILED_PRECONDITION, NOT_ANALYZED.
    """
    ids = {name: _id(name) for name in names.values()}
    known = (
        {row["id"]: row for row in await pool.fetch(_ANALYZED, owner, [i for i in ids.values() if i])} if ids else {}
    )
    for field, name in names.items():
        row = known.get(ids[name])
        if row is None:
            missing = not_found("track", name)
            missing.fields = [(field, missing.message)]
            raise missing
        if not row["analyzed"]:
            raise refused("NOT_ANALYZED", f"{name} has not been analysed", field)
    return {name: known[ids[name]] for name in names.values()}


def refused(reason: str, message: str, field: str) -> ApiError:
    """FAILED_PRECONDITION, blaming ``field``."""
    return ApiError(grpc.StatusCode.FAILED_PRECONDITION, reason, message, fields=[(field, message)])


def _id(name: str) -> UUID | None:
    try:
        return UUID(name.removeprefix("tracks/"))
    except ValueError:
        return None


def _track_of(example: search_pb2.Example) -> tuple[str, str]:
    """The field that names an example's track, and the name; empty: it is an embedding."""
    match example.WhichOneof("example"):
        case "track":
            return "track", example.track
        case "segment":
            return "segment.track", example.segment.track
    return "", ""


def _of_track(row: Row, model: str, field: str) -> Vector:
    if row["embedding"] is None:
        raise refused("NO_EMBEDDING", "the analysis could not tell what this track sounds like", field)
    if row["model"] != model:
        raise _other_model(field)
    return stored(row["embedding"])


async def _of_segment(pool: Pool, row: Row, given: search_pb2.TrackSegment, model: str, field: str) -> Vector:
    segments = Segments.parse(await pool.fetchval(_SEGMENTS, row["id"]) or b"")
    if segments.model not in ("", model):
        raise _other_model(field)
    between = segments.between(given.start_seconds, given.end_seconds)
    if len(segments.values) and not len(between):
        raise invalid("STRETCH_OUTSIDE", "the stretch lies beyond the end of the track", f"{field}.start_seconds")
    vector = padded(between.mean(axis=0)) if len(between) else None
    if vector is None:
        raise refused("NO_EMBEDDING", "the analysis could not tell what this stretch sounds like", field)
    return vector


def _of_embedding(given: analysis_pb2.Embedding, model: str, field: str) -> Vector:
    if given.model != model:
        raise invalid(
            "EMBEDDING_MODEL_MISMATCH", f"tracks here have embeddings of {model}", f"{field}.model", model=model
        )
    if len(given.values) != VALUES.get(model, len(given.values)) or len(given.values) > DIMENSIONS:
        raise invalid("EMBEDDING_SIZE_MISMATCH", f"{model} makes embeddings of other sizes", f"{field}.values")
    vector = padded(given.values)
    if vector is None:
        raise invalid("EMBEDDING_ZERO", "an embedding of nothing but zeros has no direction", f"{field}.values")
    return vector


def _other_model(field: str) -> ApiError:
    return refused("NOT_ANALYZED", "the track was analysed with another model of embeddings; analyse it again", field)
