"""What jobs cost besides their work: throughput, the queue by its depth, watching, and whole separations.

    PARTS=throughput,depth,watching,costs python -m tests.bench jobs

``JOBS`` and ``ROUNDS`` size the first part, ``DEPTHS`` and ``CALLS`` the second, ``WATCHERS`` and ``EVENTS`` the
third, ``REST`` (seconds) and ``SEPARATIONS`` the fourth.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.bench import costs, depth, throughput, watching
from tests.bench.common import RESULTS, keep

ALL = {
    "throughput": throughput.measured,
    "depth": depth.measured,
    "watching": watching.measured,
    "costs": costs.measured,
}
PARTS = os.environ.get("PARTS", ",".join(ALL)).split(",")


def measure() -> None:
    """Print and keep what was seen; parts that are left out stay as they were."""
    file = RESULTS / "jobs.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    found: dict[str, Any] = {name: kept[name] for name in ALL if name in kept}
    with tempfile.TemporaryDirectory(prefix="contrafact-jobs-") as folder:
        for name in PARTS:
            print(f"{name}:", flush=True)
            found[name] = asyncio.run(ALL[name](Path(folder) / name))
    keep("jobs", found)
