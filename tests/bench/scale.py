"""What changes at 10, 1,000 and 100,000 jobs a minute: a discrete-event simulation, fed by what ``jobs`` measured.

    CORES=8 JOB_SECONDS=10 SEGMENTS=30 python -m tests.bench scale

Jobs arrive at random (Poisson), a fifth of them interactive, from a thousand owners of whom the k-th is 1/k as busy as
the first. There are as many workers as keep their slots ``SLOTS_BUSY`` busy. Creating, claiming, working and ending
take time of PostgreSQL (one queue, ``CORES`` cores) and of Redis (one core), as measured on this machine; what servers
do at rest makes both slower. A free slot takes the next job by priority and fair turn, as ``JobStore`` does.

What it does not know: networks, disks, contention for locks and connections, and models: these are taken to keep up.
Costs are CPU time at a low load; at a high one Redis and PostgreSQL do more in each waking, so that they are saturated
later than this says. Where a store is, waits grow as long as that lasts: none is given.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from tests.bench.common import RESULTS, keep
from tests.bench.ledger import table

RATES = (10, 1_000, 10_000, 100_000)  # jobs a minute
CORES = int(os.environ.get("CORES", "8"))
JOB_SECONDS = float(os.environ.get("JOB_SECONDS", "10"))
SEGMENTS = int(os.environ.get("SEGMENTS", "30"))
SIMULATED = int(os.environ.get("JOBS", "20000"))
SLOTS_BUSY = 0.8
SLOTS_OF_A_WORKER = (2, 1)  # for any job, and for interactive ones only
OWNERS, INTERACTIVE_SHARE = 1000, 0.2
TICKS = 10  # parts into which the work of a job is cut


@dataclass(frozen=True)
class Costs:
    """Seconds of PostgreSQL and of Redis: of steps of a job, of all its work in between, of a second at rest."""

    create: float
    claim: float
    work: float
    redis: float
    rest: tuple[float, float]
    rest_of_a_worker: tuple[float, float]
    transactions: float
    commands: float


def measured() -> Costs:
    """From the results of ``python -m tests.bench jobs``."""
    file = RESULTS / "jobs.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    if missing := {"depth", "costs"} - set(found):
        sys.exit(f"first run: PARTS={','.join(sorted(missing))} python -m tests.bench jobs")
    costs, waiting = found["costs"], found["depth"]["by_waiting"]
    first, more, rest, worker = (
        costs[name]
        for name in (
            "separation of 1 segment",
            "one more segment",
            "stack at rest, a second",
            "one more worker at rest, a second",
        )
    )
    # Of the depths, 1,000 jobs: what is claimed from is short as long as the slots are not all taken.
    steps = waiting.get("1000 of 1000 owners") or waiting[next(name for name in waiting if "1000 owners" in name)]
    create, claim, beat = (steps[name]["postgres_cpu_ms"] / 1e3 for name in ("create", "claim", "beat"))
    whole = (first["postgres_cpu_ms"] + (SEGMENTS - 1) * more["postgres_cpu_ms"]) / 1e3
    beats = max(0.0, JOB_SECONDS - 1) * 2 * beat  # each also asks for followers
    return Costs(
        create=create,
        claim=claim,
        work=max(0.0, whole - create - claim) + beats,
        redis=(first["valkey_cpu_ms"] + (SEGMENTS - 1) * more["valkey_cpu_ms"]) / 1e3,
        rest=(rest["postgres_cpu_ms"] / 1e3, rest["valkey_cpu_ms"] / 1e3),
        rest_of_a_worker=(worker["postgres_cpu_ms"] / 1e3, worker["valkey_cpu_ms"] / 1e3),
        transactions=first["transactions"] + (SEGMENTS - 1) * more["transactions"] + 2 * max(0.0, JOB_SECONDS - 1),
        commands=first["commands"] + (SEGMENTS - 1) * more["commands"],
    )


class Station:
    """Servers with one queue; ``share``: of its time that is left for jobs."""

    def __init__(self, servers: int, share: float) -> None:
        self._free = [0.0] * servers
        self._share = share

    def serve(self, now: float, seconds: float) -> float:
        """When something that comes now and takes so long is done."""
        end = max(now, self._free[0]) + seconds / self._share
        heapq.heapreplace(self._free, end)
        return end


class Turns:
    """Jobs that wait, in the order in which they are claimed."""

    def __init__(self) -> None:
        self._heaps: dict[bool, list[tuple[int, float, int]]] = {True: [], False: []}
        self._last: dict[tuple[bool, int], int] = {}
        self._waiting: Counter[tuple[bool, int]] = Counter()

    def add(self, now: float, interactive: bool, owner: int) -> None:
        heap, key = self._heaps[interactive], (interactive, owner)
        turn = max(heap[0][0] if heap else 0, self._last[key] + 1 if self._waiting[key] else 0)
        self._last[key] = turn
        self._waiting[key] += 1
        heapq.heappush(heap, (turn, now, owner))

    def next(self, interactive: bool) -> float | None:
        """When the next job came, if there is one."""
        if not self._heaps[interactive]:
            return None
        _, came, owner = heapq.heappop(self._heaps[interactive])
        self._waiting[interactive, owner] -= 1
        return came


class Town:
    """One simulation."""

    def __init__(self, rate: float, costs: Costs, seed: int = 0) -> None:
        per_worker = sum(SLOTS_OF_A_WORKER)
        self.workers = math.ceil(rate / 60 * JOB_SECONDS / SLOTS_BUSY / per_worker)
        # The first worker's share of a second at rest is counted with all else.
        rest = [costs.rest[which] + (self.workers - 1) * costs.rest_of_a_worker[which] for which in (0, 1)]
        jobs = rate / 60
        self.use = [
            (rest[0] + jobs * (costs.create + costs.claim + costs.work)) / CORES,
            rest[1] + jobs * costs.redis,
        ]
        left = (1 - rest[0] / CORES, 1 - rest[1])
        self._postgres, self._redis = Station(CORES, max(left[0], 1e-3)), Station(1, max(left[1], 1e-3))
        self._rate, self._costs, self._random = rate / 60, costs, Random(seed)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = itertools.count()
        self._turns = Turns()
        self._running = {True: 0, False: 0}
        self._slots = (self.workers * per_worker, self.workers * SLOTS_OF_A_WORKER[0])
        self._owners = list(itertools.accumulate(1 / (number + 1) for number in range(OWNERS)))
        self.waits: dict[bool, list[float]] = {True: [], False: []}

    def run(self, jobs: int) -> None:
        """Let so many jobs come, and all of them end."""
        at = 0.0
        for _ in range(jobs):
            at += self._random.expovariate(self._rate)
            self._at(at, self._arrive)
        while self._events:
            now, _, event = heapq.heappop(self._events)
            event(now)

    def _at(self, when: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), event))

    def _arrive(self, now: float) -> None:
        interactive = self._random.random() < INTERACTIVE_SHARE
        owner = self._random.choices(range(OWNERS), cum_weights=self._owners)[0]
        self._at(self._postgres.serve(now, self._costs.create), lambda done: self._queue(done, interactive, owner))

    def _queue(self, now: float, interactive: bool, owner: int) -> None:
        self._turns.add(now, interactive, owner)
        self._take(now)

    def _take(self, now: float) -> None:
        for interactive in (True, False):
            while sum(self._running.values()) < self._slots[0] and (
                interactive or self._running[False] < self._slots[1]
            ):
                came = self._turns.next(interactive)
                if came is None:
                    break
                self._running[interactive] += 1
                begin = self._postgres.serve(now, self._costs.claim)
                self.waits[interactive].append(begin - came)
                seconds = self._random.gammavariate(4, JOB_SECONDS / 4)
                self._at(begin, lambda when, i=interactive, s=seconds: self._work(when, i, s, TICKS))  # type: ignore[misc]

    def _work(self, now: float, interactive: bool, seconds: float, ticks: int) -> None:
        if not ticks:
            self._running[interactive] -= 1
            return self._take(now)
        done = self._postgres.serve(now, self._costs.work / TICKS)
        done = max(done, self._redis.serve(now, self._costs.redis / TICKS))
        # The model goes on meanwhile; only the last of the stores' answers is waited for.
        after = max(done, now + seconds / TICKS)
        self._at(after, lambda when: self._work(when, interactive, seconds, ticks - 1))


def simulated(rate: int, costs: Costs) -> dict[str, Any]:
    """How it is at so many jobs a minute: cores that are busy, questions a second, seconds that jobs wait."""
    town = Town(rate, costs)
    found: dict[str, Any] = {
        "workers": town.workers,
        "postgres_cores": round(CORES * town.use[0], 2),
        "redis_cores": round(town.use[1], 2),
        "transactions_per_s": round(rate / 60 * costs.transactions),
        "commands_per_s": round(rate / 60 * costs.commands),
    }
    enough = max(town.use) < 1
    if enough:
        town.run(max(SIMULATED, rate // 2))
    for name, interactive in (("interactive", True), ("background", False)):
        waits = town.waits[interactive]
        middle, slow = np.percentile(waits[len(waits) // 5 :], (50, 99)) if enough else (None, None)
        for word, value in (("median", middle), ("p99", slow)):
            found[f"{name}_wait_{word}_s"] = None if value is None else round(float(value), 4)
    return found


def limits(costs: Costs) -> dict[str, int]:
    """Jobs a minute at which each store is busy all the time."""
    workers_of_a_job = JOB_SECONDS / SLOTS_BUSY / sum(SLOTS_OF_A_WORKER)
    postgres = costs.create + costs.claim + costs.work + workers_of_a_job * costs.rest_of_a_worker[0]
    redis = costs.redis + workers_of_a_job * costs.rest_of_a_worker[1]
    return {"postgres": round(60 * CORES / postgres), "redis": round(60 / redis)}


def measure() -> None:
    """Print and keep the table."""
    costs = measured()
    found = {f"{rate}": simulated(rate, costs) for rate in RATES}
    rows = [[rate, *("grows" if value is None else value for value in entry.values())] for rate, entry in found.items()]
    table([["jobs/min", *(name.replace("_", " ") for name in next(iter(found.values())))], *rows])
    full = limits(costs)
    print(f"  all the time busy at jobs a minute: {full}", flush=True)
    setup = {"postgres_cores": CORES, "job_seconds": JOB_SECONDS, "segments": SEGMENTS, "simulated_jobs": SIMULATED}
    milliseconds = {name: round(1e3 * getattr(costs, name), 3) for name in ("create", "claim", "work", "redis")}
    keep("scale", {**setup, "store_ms_of_a_job": milliseconds, "by_jobs_a_minute": found, "saturated_at": full})
