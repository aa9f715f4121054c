"""How much there is to do, and how fast it goes: measured once a second, from what PostgreSQL says."""

from __future__ import annotations

import asyncio
import time

from servers.platform import telemetry
from servers.platform.settings import Settings
from servers.platform.tasks import Background
from servers.storage.database import Pool, Row

REFRESH_SECONDS = 1.0
RATES_SECONDS = 15.0
SHARE = 0.05  # of the time, at most: counting a long queue takes longer
JOBS_OF_A_RATE = 50
RETRY_SECONDS = (1.0, 600.0)
_DEADLINE = 10.0


class Load(Background):
    """Jobs that wait and run, and estimates of when they end.

    Args:
        pool: The database.
        settings: Names the slots of a worker, of which there is at least one.
        export: Whether to keep the gauges ``contrafact_queue_*``. All of them say the same, so one kind of server
            should: the workers.
    """

    def __init__(self, pool: Pool, settings: Settings, *, export: bool = False) -> None:
        self._pool = pool
        self._slots_of_a_worker = settings.worker_concurrency
        self._export = export
        self._counts: list[Row] = []
        self._run_seconds: dict[str, float] = {}
        self._pace: dict[str, float] = {}
        self._rates_at = -RATES_SECONDS

    def queued(self, priority: str | None = None) -> int:
        """Jobs that waited a moment ago, of one priority or of both."""
        return self._sum("QUEUED", priority)

    def eta(self, kind: str, position: int, seconds: float | None) -> float | None:
        """Estimated seconds to the end of a waiting job; None while nothing of its kind was measured.

        With S slots at work, each for m seconds a job, jobs end every m/S seconds, and the job begins when one more
        than go before it have.

        Args:
            kind: What it does.
            position: How many go before it.
            seconds: Length of its audio; None: unknown.
        """
        pace, mean = self._pace.get(kind), self._mean_run_seconds()
        if pace is None or mean is None or seconds is None:
            return None
        return (position + 1) * mean / self._slots() + pace * seconds

    def retry_after(self) -> float:
        """Seconds, 1 to 600, until about one place in a full queue is free."""
        mean = self._mean_run_seconds()
        shortest, longest = RETRY_SECONDS
        return shortest if mean is None else min(max(mean / self._slots(), shortest), longest)

    async def refresh(self) -> None:
        """Count now, and measure the rates if that was long ago."""
        async with asyncio.timeout(_DEADLINE):
            self._counts = await self._pool.fetch(
                """SELECT state, kind, priority, count(*) AS jobs,
                          extract(epoch FROM now() - min(created_at))::float8 AS oldest
                   FROM (SELECT * FROM jobs WHERE state = 'QUEUED'
                         UNION ALL SELECT * FROM jobs WHERE state = 'RUNNING') AS unfinished
                   GROUP BY state, kind, priority"""
            )
            if time.monotonic() >= self._rates_at + RATES_SECONDS:
                await self._measure_rates()
                self._rates_at = time.monotonic()
        if self._export:
            self._set_gauges()

    async def _work(self) -> None:
        while True:
            began = time.monotonic()
            try:
                await self.refresh()
            except Exception as error:  # whatever it is, the next round must come
                telemetry.log().warning("load not measured", error=type(error).__name__)
            await asyncio.sleep(max(REFRESH_SECONDS, (time.monotonic() - began) / SHARE))

    async def _measure_rates(self) -> None:
        """Of the newest jobs that succeeded: how long a job takes, and, where a model was at work, a second of it."""
        rows = await self._pool.fetch(
            """SELECT kind, avg(took) AS run,
                      sum(took) FILTER (WHERE made AND seconds IS NOT NULL) / sum(seconds) FILTER (WHERE made) AS pace
               FROM (SELECT kind, extract(epoch FROM ended_at - claimed_at)::float8 AS took,
                            timings @> '[{"stage": "SEPARATE"}]' OR timings @> '[{"stage": "CONVERT"}]'
                                OR timings @> '[{"stage": "ANALYZE"}]' OR timings @> '[{"stage": "MIX"}]' AS made,
                            frames::float8 / sample_rate AS seconds,
                            row_number() OVER (PARTITION BY kind ORDER BY ended_at DESC) AS number
                     FROM (SELECT * FROM jobs WHERE ended_at IS NOT NULL ORDER BY ended_at DESC LIMIT 1000) AS newest
                          LEFT JOIN tracks ON tracks.id = track_id LEFT JOIN recordings USING (sha256)
                     WHERE state = 'SUCCEEDED' AND claimed_at IS NOT NULL) AS numbered
               WHERE number <= $1 GROUP BY kind""",
            JOBS_OF_A_RATE,
        )
        # What was measured of a kind of which none ended lately still holds.
        self._run_seconds |= {row["kind"]: row["run"] for row in rows}
        self._pace |= {row["kind"]: row["pace"] for row in rows if row["pace"] is not None}

    def _sum(self, state: str, priority: str | None = None) -> int:
        return sum(row["jobs"] for row in self._counts if row["state"] == state and priority in (None, row["priority"]))

    def _slots(self) -> int:
        return max(self._sum("RUNNING"), self._slots_of_a_worker)

    def _mean_run_seconds(self) -> float | None:
        """Of the jobs that wait, as far as their kinds were measured; of all kinds when none waits."""
        measured = self._run_seconds
        waiting = [
            (int(row["jobs"]), measured[row["kind"]])
            for row in self._counts
            if row["state"] == "QUEUED" and row["kind"] in measured
        ]
        if not waiting:
            return max(measured.values(), default=None)
        return sum(jobs * seconds for jobs, seconds in waiting) / sum(jobs for jobs, _ in waiting)

    def _set_gauges(self) -> None:
        telemetry.QUEUE_JOBS.clear()
        telemetry.QUEUE_OLDEST_SECONDS.clear()
        for row in self._counts:
            telemetry.QUEUE_JOBS.labels(row["state"], row["kind"], row["priority"]).set(row["jobs"])
            if row["state"] == "QUEUED":
                telemetry.QUEUE_OLDEST_SECONDS.labels(row["kind"], row["priority"]).set(row["oldest"])
