"""Run the measurements named on the command line, or all."""

from __future__ import annotations

import sys

from tests.bench import cover, grains, jobs, memory, mix, mixer, parity, pool, priority, rvc, scale, search, soak, speed
from tests.bench.analysis import measure as analysis

ALL = {
    "parity": parity.measure,
    "memory": memory.measure,
    "speed": speed.measure,
    "rvc-parity": rvc.measure_parity,
    "rvc-cost": rvc.measure_cost,
    "cover": cover.measure,
    "cover-memory": memory.measure_cover,
    "grains": grains.measure,
    "mix": mix.measure,
    "mixer": mixer.measure,
    "pool": pool.measure,
    "jobs": jobs.measure,
    "priority": priority.measure,
    "scale": scale.measure,
    "analysis": analysis.measure,
    "search": search.measure,
    "soak": soak.measure,
}

if __name__ == "__main__":
    names = sys.argv[1:] or list(ALL)
    if unknown := set(names) - set(ALL):
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(ALL)}")
    for name in names:
        ALL[name]()
