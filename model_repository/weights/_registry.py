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


@dataclass(frozen=True)
class Source:
    """One place weights may come from; ``options`` are the other keys of its table (see ``registry.toml``)."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightSet:
    """One entry of the registry: the canonical file and the sources tried, in order."""

    name: str
    file: str
    size: int
    sha256: str
    licence: str
    notice: str
    layout: str
    sources: tuple[Source, ...]
    check: Mapping[str, Any] = field(default_factory=dict)

    @property
    def limit(self) -> int:
        """Bytes that a source's file may have: a float32 ONNX export of htdemucs has twice the canonical file's."""
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
    """The set called ``name``; `WeightsError` lists the known names if there is none."""
    sets = load_registry()
    if name not in sets:
        raise WeightsError(f"no weight set is called {name!r}; the registry has: {', '.join(sorted(sets))}")
    return sets[name]


def _entry(file: Path, name: str, table: Mapping[str, Any]) -> WeightSet:
    try:
        entry = WeightSet(
            name=name,
            file=table["file"],
            size=table["size"],
            sha256=table["sha256"],
            licence=table["licence"],
            notice=table.get("notice", ""),
            layout=table.get("layout", "plain"),
            sources=tuple(
                Source(source["kind"], {key: value for key, value in source.items() if key != "kind"})
                for source in table["source"]
            ),
            check=table.get("check", {}),
        )
    except (KeyError, TypeError) as error:
        raise WeightsError(f"{file}: entry {name!r} lacks {error}") from None
    for wrong, problem in (
        (Path(entry.file).name != entry.file, f"file {entry.file!r} must be a plain name"),
        (not re.fullmatch("[0-9a-f]{64}", entry.sha256), "sha256 must be 64 hexadecimal digits"),
        (entry.layout not in LAYOUTS, f"layout {entry.layout!r} is none of {LAYOUTS}"),
        (any(source.kind not in KINDS for source in entry.sources), f"a source kind is none of {KINDS}"),
    ):
        if wrong:
            raise WeightsError(f"{file}: entry {name!r}: {problem}")
    return entry
