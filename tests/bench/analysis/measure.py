"""What analyses are worth and cost: accuracy against other tools, retrieval, speed, memory, and the way they are made.

``PARTS=levels,rhythm python -m tests.bench analysis`` measures some of it. Each part prints a table.
"""

from __future__ import annotations

import importlib
import os
import time
from dataclasses import asdict, is_dataclass
from typing import Any

from tests.bench.common import keep

# The functions of each part that return rows.
PARTS = {
    "levels": ("levels", ("table", "cpu_seconds")),
    "rhythm": ("rhythm", ("table", "costs")),
    "tonal": ("tonal", ("table", "costs")),
    "retrieval": ("retrieval", ("table",)),
    "speed": ("speed", ("table",)),
    "onplay": ("onplay", ("table",)),
}

Row = dict[str, Any]


def measure() -> None:
    """Measure all parts, or those that PARTS names."""
    chosen = os.environ.get("PARTS", ",".join(PARTS)).split(",")
    for part in chosen:
        results: dict[str, list[Row]] = {}
        name, functions = PARTS[part]
        module = importlib.import_module(f"tests.bench.analysis.{name}")
        for function in functions:
            begin = time.perf_counter()
            rows = _rows(getattr(module, function)())
            print(f"{part} {function} ({time.perf_counter() - begin:.0f} s):\n{_text(rows)}", flush=True)
            results[function] = rows
        keep(f"analysis-{part}", results)


def _rows(found: Any) -> list[Row]:
    """What a part has found, as rows."""
    if isinstance(found, dict):
        return [{"what": what, **(value if isinstance(value, dict) else {"": value})} for what, value in found.items()]
    return [asdict(row) if is_dataclass(row) and not isinstance(row, type) else dict(row) for row in found]


def _text(rows: list[Row]) -> str:
    """Rows as columns; each kind of row has a header of its own."""
    lines: list[str] = []
    header: tuple[str, ...] = ()
    for row in rows:
        if tuple(row) != header:
            header = tuple(row)
            lines.append("  " + "  ".join(header))
        lines.append("  " + "  ".join(_word(row[name]).rjust(len(name)) for name in header))
    return "\n".join(lines)


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_word(each)}" for name, each in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)
