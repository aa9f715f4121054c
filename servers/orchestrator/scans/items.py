"""What becomes of the items of a scan: each is a track that is named, or an object that becomes one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from servers.storage.database import Connection, Row

PACE_SECONDS = 60.0  # over which the pace of a scan is taken
MOST_TRIES = 10  # jobs of an item that fail for a reason that may pass, before it fails
RETRY_SECONDS = 10.0  # after the first of them; it doubles with each
MAX_RETRY_SECONDS = 600.0
NO_AUDIO = frozenset({"NOT_AUDIO", "UNSUPPORTED_CONTAINER", "NO_AUDIO_STREAM", "NO_FRAMES", "EMPTY_FILE"})
_TRACK_DELETED = {"reason": "TRACK_DELETED", "message": "the track was deleted", "retryable": False}
_CANCELLED = {"reason": "CANCELLED", "message": "its job was cancelled", "retryable": True}


@dataclass(frozen=True, slots=True)
class Fate:
    """What an item is from now on: columns of ``scan_items``.

    Attributes:
        track_id: What its import made; None: its track stays what it is.
        pause: Seconds until it is tried once more; None: it did not fail for a reason that may pass.
    """

    number: int
    state: str = "WAITING"
    busy: bool = False
    job_id: UUID | None = None
    track_id: UUID | None = None
    error: dict[str, Any] | None = None
    pause: float | None = None


def after_job(row: Row) -> Fate:
    """What becomes of a busy item whose job has ended, or is forgotten.

    Args:
        row: ``number``, ``track_id``, ``job_id`` and ``tries`` of the item; ``kind``, ``state`` (None: there is no
            such job), ``error``, ``made`` (its track) of the job, and whether it went through the analyzer, ``worked``.
    """
    number, job = row["number"], row["job_id"]
    imported = row["kind"] == "IMPORT"
    match row["state"]:
        case None:
            return Fate(number)  # as if it had never been: what it may have done is found
        case "SUCCEEDED" if imported:
            return Fate(number, job_id=job, track_id=row["made"])
        case "SUCCEEDED":
            return Fate(number, "ANALYZED" if row["worked"] else "EXISTING", job_id=job)
        case _ if not imported and row["track_id"] is None:
            error = _TRACK_DELETED
        case "FAILED" if row["error"]["retryable"] and row["tries"] + 1 < MOST_TRIES:
            pause = min(RETRY_SECONDS * 2.0 ** row["tries"], MAX_RETRY_SECONDS)
            # An object that no job stands for has not been imported.
            return Fate(number, job_id=None if imported else job, pause=pause)
        case "FAILED":
            error = row["error"]
        case _:
            error = _CANCELLED
    state = "SKIPPED" if imported and error["reason"] in NO_AUDIO else "FAILED"
    return Fate(number, state, job_id=job, error=error)


def without_job(row: Row) -> Fate | None:
    """What becomes of a waiting item at once; None: it needs a job.

    Args:
        row: ``number``, ``object``, ``track_id`` and ``job_id`` of the item, and whether it is ``analyzed``.
    """
    if row["analyzed"]:
        return Fate(row["number"], "EXISTING", job_id=row["job_id"])
    if row["track_id"] is None and (row["object"] is None or row["job_id"] is not None):  # it was named, or imported
        return Fate(row["number"], "FAILED", job_id=row["job_id"], error=_TRACK_DELETED)
    return None


async def settle(connection: Connection, scan_id: UUID, fates: Sequence[Fate]) -> None:
    """Write fates of items, the counts of their scan, and its pace; in a transaction that has locked the scan.

    The pace is the sum over all items done of exp(-age/T)/T, with T = ``PACE_SECONDS``.
    """
    if fates:
        await connection.execute(
            """UPDATE scan_items SET state = fate.state, busy = fate.busy, job_id = fate.job_id, error = fate.error,
                                     track_id = coalesce(fate.track_id, scan_items.track_id),
                                     tries = tries + (pause IS NOT NULL)::integer,
                                     not_before = coalesce(now() + pause * interval '1 second', not_before)
               FROM unnest($2::bigint[], $3::text[], $4::boolean[], $5::uuid[], $6::uuid[], $7::jsonb[], $8::float8[])
                    AS fate (number, state, busy, job_id, track_id, error, pause)
               WHERE scan_id = $1 AND scan_items.number = fate.number""",
            scan_id,
            [fate.number for fate in fates],
            [fate.state for fate in fates],
            [fate.busy for fate in fates],
            [fate.job_id for fate in fates],
            [fate.track_id for fate in fates],
            [fate.error for fate in fates],
            [fate.pause for fate in fates],
        )
    states = Counter(fate.state for fate in fates)
    await connection.execute(
        """UPDATE scans SET existing = existing + $2, analyzed = analyzed + $3, skipped = skipped + $4,
                            failed = failed + $5, fed_at = now(),
                            pace = CASE WHEN pace < 1e-9 THEN 0 ELSE  -- PostgreSQL knows no numbers beyond all measure
                                       pace * exp(greatest(-30, -extract(epoch FROM now() - fed_at)::float8 / $6))
                                   END + ($2 + $3 + $4 + $5) / $6
           WHERE id = $1""",
        scan_id,
        *(states[state] for state in ("EXISTING", "ANALYZED", "SKIPPED", "FAILED")),
        PACE_SECONDS,
    )
