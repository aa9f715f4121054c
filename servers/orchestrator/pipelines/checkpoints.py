"""What earlier attempts have stored of growing files: where another attempt goes on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from servers.orchestrator.jobs.runner import JobRun
from servers.orchestrator.pipelines.growing import GrowingFile
from servers.platform import telemetry
from servers.storage import keys
from servers.storage.database import Pool, Row
from servers.storage.objects import ObjectMissing, ObjectStore


class Checkpoints:
    """Finds and reads them; what an attempt wrote serves all jobs of the same ``lock``."""

    def __init__(self, pool: Pool, objects: ObjectStore) -> None:
        self._pool = pool
        self._objects = objects

    async def rows(self, run: JobRun, files: Sequence[GrowingFile]) -> list[list[Row]]:
        """The pieces of each of ``files``, in order, of the attempt that came furthest with all of them; [] if none."""
        names = [file.resumable for file in files]
        if None in names:
            return []
        best = await self._pool.fetchrow(
            """WITH same AS (SELECT $2::uuid AS id UNION SELECT id FROM jobs WHERE lock = $4), files AS (
                   SELECT job_id, attempt, stem, max(frames) AS frames FROM live_pieces
                   WHERE job_id IN (SELECT id FROM same) AND stem = ANY($1) AND (job_id, attempt) <> ($2, $3)
                   GROUP BY job_id, attempt, stem
               )
               SELECT job_id, attempt FROM files
               GROUP BY job_id, attempt HAVING count(frames) = cardinality($1)
               ORDER BY min(frames) DESC LIMIT 1""",
            names,
            run.id,
            run.attempt,
            run.row["lock"],
        )
        if best is None:
            return []
        rows = await self._pool.fetch(
            """SELECT * FROM live_pieces WHERE job_id = $1 AND attempt = $2 AND stem = ANY($3) ORDER BY start""",
            best["job_id"],
            best["attempt"],
            names,
        )
        return [[row for row in rows if row["stem"] == name] for name in names]

    async def read(self, rows: Sequence[Row]) -> AsyncGenerator[tuple[Row, bytes], None]:
        """The bytes of consecutive pieces, each with its row, up to the first that is not there as it should be.

        The last often is not: the attempt ended before it was stored.
        """
        position = 0
        for row in rows:
            key = keys.live_piece(row["job_id"], row["attempt"], row["stem"], row["start"])
            try:
                data = b"".join([part async for part in self._objects.read(key)])
            except ObjectMissing:
                return
            if (row["start"], row["size_bytes"]) != (position, len(data)):
                return
            position += len(data)
            yield row, data


def resumed(run: JobRun, recording: Row, frames: int) -> None:
    """Say and count that the attempt began with so many frames of an earlier one."""
    if frames:
        seconds = frames / recording["sample_rate"]
        telemetry.RESUMED_SECONDS.labels(run.row["kind"]).inc(seconds)
        telemetry.log().info("resumed", seconds=round(seconds, 3), attempt=run.attempt)
