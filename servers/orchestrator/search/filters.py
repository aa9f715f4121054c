"""Which tracks a query may find, as conditions of SQL on ``sounds s``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from contrafact.v1 import search_pb2

from servers.orchestrator.search.camelot import neighbours, position
from servers.orchestrator.tracks.register import normal_tags
from servers.platform.errors import invalid


class Conditions:
    """Conditions and the values of their parameters."""

    def __init__(self, owner: str) -> None:
        self.values: list[Any] = []
        self._texts: list[str] = []
        self.add("s.owner = {}", owner)

    @property
    def sql(self) -> str:
        """All of them."""
        return " AND ".join(self._texts)

    def add(self, text: str, *values: Any) -> None:
        """One more; each ``{}`` in it, or ``{0}`` and so on, is a parameter."""
        self._texts.append(text.format(*map(self.parameter, values)))

    def parameter(self, value: Any) -> str:
        """A new parameter."""
        self.values.append(value)
        return f"${len(self.values)}"


def check_filter(given: search_pb2.TrackFilter, field: str) -> None:
    """INVALID_ARGUMENT if a range of the filter is empty; ``field`` is the filter's in the request."""
    for what in ("bpm", "lufs", "seconds"):
        low, high = f"min_{what}", f"max_{what}"
        if given.HasField(low) and given.HasField(high) and getattr(given, low) > getattr(given, high):  # type: ignore[arg-type]
            raise invalid("INVALID_RANGE", f"{low} is greater than {high}", f"{field}.{low}")


def conditions_of(given: search_pb2.TrackFilter, owner: str, without: Iterable[UUID]) -> Conditions:
    """The tracks of ``owner`` that pass a filter, without those named by it or by ``without``."""
    found = Conditions(owner)
    if given.HasField("min_bpm") or given.HasField("max_bpm"):
        octaves = ("s.bpm", "s.bpm * 2", "s.bpm / 2") if given.any_octave else ("s.bpm",)
        text = " OR ".join(f"{octave} BETWEEN {{0}} AND {{1}}" for octave in octaves)
        found.add(f"({text})", given.min_bpm, given.max_bpm if given.HasField("max_bpm") else math.inf)
    if given.keys:
        keys = set(map(position, given.keys))
        found.add("s.key = ANY({}::smallint[])", sorted(neighbours(keys) if given.compatible_keys else keys))
    for column, low, high in (("loudness", "min_lufs", "max_lufs"), ("seconds", "min_seconds", "max_seconds")):
        if given.HasField(low):  # type: ignore[arg-type]
            found.add(f"s.{column} >= {{}}", getattr(given, low))
        if given.HasField(high):  # type: ignore[arg-type]
            found.add(f"s.{column} <= {{}}", getattr(given, high))
    _add_tags(found, normal_tags(given.tags), normal_tags(given.without_tags))
    if excluded := {*without, *ids_of(given.exclude)}:
        # A sub-select is hashed whatever the plan; "<> ALL" may compare with each of thousands.
        found.add("s.track_id NOT IN (SELECT unnest({}::uuid[]))", sorted(excluded))
    return found


def _add_tags(found: Conditions, tags: Sequence[str], without: Sequence[str]) -> None:
    # A tag with NUL is on no track, and PostgreSQL cannot be asked for it.
    if any("\0" in tag for tag in tags):
        found.add("false")
    elif tags:
        found.add("EXISTS (SELECT 1 FROM tracks t WHERE t.id = s.track_id AND t.tags @> {}::text[])", list(tags))
    if unwanted := [tag for tag in without if "\0" not in tag]:
        found.add("NOT EXISTS (SELECT 1 FROM tracks t WHERE t.id = s.track_id AND t.tags && {}::text[])", unwanted)


def ids_of(names: Iterable[str]) -> Iterator[UUID]:
    """The ids in names of tracks; what is no id is no track that could be found."""
    for name in names:
        with suppress(ValueError):
            yield UUID(name.removeprefix("tracks/"))
