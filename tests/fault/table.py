"""How a system took all that was done to it, as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.fault.chaos import LEASE_SECONDS, Chaos
from tests.fault.strikes import Strike

COLUMNS = ("times", "jobs", "retries", "lost", "duplicated", "failed", "progress", "stall", "healthy")


def summary(chaos: Chaos) -> dict[str, Any]:
    """Per kind of fault, in the order of their names, and of all.

    ``jobs`` waited or ran when it struck. ``retries``, ``lost`` (jobs and results), ``duplicated`` and ``failed`` count
    for the last fault before they were seen, or, of lost workers, before their lease began to run out. ``progress``,
    ``stall`` and ``healthy`` are seconds, [median, longest]: see `Strike`.
    """
    retries = [at - LEASE_SECONDS if why.startswith("LOST") else at for at, why in chaos.retries]
    blamed = {
        "retries": _blame(chaos.strikes, retries),
        "lost": _blame(chaos.strikes, (at for at, _ in chaos.load.lost)),
        "duplicated": _blame(chaos.strikes, (at for at, _ in chaos.duplicated)),
        "failed": _blame(chaos.strikes, (at for at, _ in chaos.load.failed)),
    }
    kinds: dict[str, list[int]] = {}
    for number, strike in enumerate(chaos.strikes):
        kinds.setdefault(strike.kind, []).append(number)
    rows = {kind: _row(chaos.strikes, numbers, blamed) for kind, numbers in sorted(kinds.items())}
    everything = list(range(-1, len(chaos.strikes)))  # with what was seen before the first
    return {
        "seed": chaos.seed,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "jobs": len(chaos.load.asked),
        "ends": dict(Counter(asked.ended for asked in chaos.load.asked)),
        "why_retried": dict(Counter(why for _, why in chaos.retries)),
        "lost": [what for _, what in chaos.load.lost],
        "failed": [what for _, what in chaos.load.failed],
        "duplicated": [what for _, what in chaos.duplicated],
        "orphaned": [what for _, what in chaos.orphaned],
        "leaked": [what for _, what in chaos.leaked],
        "faults": rows,
        "all": _row(chaos.strikes, everything, blamed),
    }


def _blame(strikes: Sequence[Strike], times: Iterable[float]) -> Counter[int]:
    """How many of these moments come after each strike and before the next."""
    began = [strike.at for strike in strikes]
    return Counter(bisect_right(began, at) - 1 for at in times)


def _row(strikes: Sequence[Strike], numbers: Sequence[int], blamed: dict[str, Counter[int]]) -> dict[str, Any]:
    these = [strikes[number] for number in numbers if number >= 0]
    row: dict[str, Any] = {"times": len(these), "jobs": sum(strike.jobs for strike in these)}
    row |= {what: sum(counts[number] for number in numbers) for what, counts in blamed.items()}
    for what in ("progress", "stall", "healthy"):
        seconds = [value for strike in these if (value := getattr(strike, what)) is not None]
        row[what] = [round(statistics.median(seconds), 1), round(max(seconds), 1)] if seconds else None
    return row


def text(found: dict[str, Any]) -> str:
    """The table for people."""
    lines = [f"{'':16}" + "".join(f"{column:>12}" for column in COLUMNS)]
    for kind, row in {**found["faults"], "all": found["all"]}.items():
        cells = ("/".join(map(str, cell)) if isinstance(cell, list) else cell for cell in map(row.get, COLUMNS))
        lines.append(f"{kind:16}" + "".join(f"{'-' if cell is None else cell:>12}" for cell in cells))
    lines.append("progress, stall, healthy: seconds, median/longest")
    lines.append(f"seed {found['seed']}; {found['jobs']} jobs: {found['ends']}; retried: {found['why_retried']}")
    for what in ("lost", "failed", "duplicated", "orphaned", "leaked"):
        lines += [f"{what}: {each}" for each in found[what][:20]]
    return "\n".join(lines)


def keep(found: dict[str, Any], path: Path) -> None:
    """Write it as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
