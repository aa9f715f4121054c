"""The registry: which weight sets exist, and what each must be. Read from a TOML file."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._errors import WeightsError

REGISTRY = Path(__file__).with_name("registry.toml")
LAYOUTS = ("plain", "htdemucs")
KINDS = ("local", "object_store", "hub", "npm")
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """One place weights may come from; ``options`` are the other keys of its table (see ``registry.toml``)."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightSet:
    """One entry of the registry: the canonical file and the sources tried, in order.

    A set of the user's own (``given_by``) has no ``size``, and no ``sha256`` until the user says which it is.
    """

    name: str
    file: str
    size: int | None
    sha256: str
    licence: str
    notice: str
    layout: str
    sources: tuple[Source, ...]
    check: Mapping[str, Any] = field(default_factory=dict)
    given_by: str = ""
    most: int = 0

    @property
    def limit(self) -> int:
        """Bytes that a source's file may have: a float32 ONNX export of htdemucs has twice the canonical file's."""
        if self.size is None:
            return self.most
        return self.size if self.layout == "plain" else 4 * self.size


def cache_folder() -> Path:
    """Where weights are kept: ``$CONTRAFACT_WEIGHTS_DIR``, else ``contrafact/weights`` in the user's cache."""
    if folder := os.environ.get("CONTRAFACT_WEIGHTS_DIR"):
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "contrafact" / "weights"


def load_registry(file: Path | None = None) -> dict[str, WeightSet]:
    """Every weight set by name, from ``file``, else ``$CONTRAFACT_WEIGHTS_REGISTRY``, else the one shipped.

    Raises:
        WeightsError: the file is missing, is not TOML, or an entry is incomplete or makes no sense.
    """
    file = file or Path(os.environ.get("CONTRAFACT_WEIGHTS_REGISTRY") or REGISTRY)
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file}: not a readable weights registry: {error}") from None
    return {name: _entry(file, name, table) for name, table in tables.items()}


def weight_set(name: str) -> WeightSet:
    """The set called ``name``; `WeightsError` lists the known names if there is none, or says how to name one's own."""
    sets = load_registry()
    if name not in sets:
        raise WeightsError(f"no weight set is called {name!r}; the registry has: {', '.join(sorted(sets))}")
    one = sets[name]
    if one.given_by and not _DIGEST.fullmatch(one.sha256):
        raise WeightsError(
            f"weights {name!r} are your own: set {one.given_by}_SOURCE (a path, https://… or s3://…) and "
            f"{one.given_by}_SHA256 (64 hexadecimal digits)"
        )
    return one


def _entry(file: Path, name: str, table: Mapping[str, Any]) -> WeightSet:
    given_by = table.get("given_by", "")
    try:
        entry = WeightSet(
            name=name,
            file=table["file"],
            size=None if given_by else table["size"],
            sha256=os.environ.get(f"{given_by}_SHA256", "").strip().lower() if given_by else table["sha256"],
            licence=table["licence"],
            notice=table.get("notice", ""),
            layout=table.get("layout", "plain"),
            sources=(
                *_given(given_by, table["file"]),
                *(
                    Source(source["kind"], {key: value for key, value in source.items() if key != "kind"})
                    for source in table["source"]
                ),
            ),
            check=table.get("check", {}),
            given_by=given_by,
            most=table["most"] if given_by else 0,
        )
    except (KeyError, TypeError) as error:
        raise WeightsError(f"{file}: entry {name!r} lacks {error}") from None
    for wrong, problem in (
        (Path(entry.file).name != entry.file, f"file {entry.file!r} must be a plain name"),
        (not given_by and not _DIGEST.fullmatch(entry.sha256), "sha256 must be 64 hexadecimal digits"),
        (entry.layout not in LAYOUTS, f"layout {entry.layout!r} is none of {LAYOUTS}"),
        (any(source.kind not in KINDS for source in entry.sources), f"a source kind is none of {KINDS}"),
    ):
        if wrong:
            raise WeightsError(f"{file}: entry {name!r}: {problem}")
    return entry


def _given(variable: str, file: str) -> list[Source]:
    """Where a set of the user's own is, if the user says so: ``<variable>_SOURCE``, a path, https://… or s3://…"""
    place = os.environ.get(f"{variable}_SOURCE", "").strip() if variable else ""
    if not place:
        return []
    if "://" in place:
        url, _, key = place.rpartition("/")
        return [Source("object_store", {"url": url, "key": key})]
    return [Source("local", {"path": place, "names": [file]})]
