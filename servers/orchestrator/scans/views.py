"""Rows of scans and their items as messages."""

from __future__ import annotations

import datetime as dt
import math

from contrafact.v1 import analysis_pb2
from google.protobuf import json_format

from servers.orchestrator.jobs.messages import duration, timestamp
from servers.orchestrator.scans.items import PACE_SECONDS
from servers.storage.database import Row

_LONGEST_SECONDS = 30 * 24 * 3600.0  # that are told: a pace that slow says nothing


def scan(row: Row) -> analysis_pb2.Scan:
    """A row of ``scans`` as a scan."""
    done = row["existing"] + row["analyzed"] + row["skipped"] + row["failed"]
    message = analysis_pb2.Scan(
        name=f"scans/{row['id']}",
        state=_state(row),
        total=row["total"],
        existing=row["existing"],
        analyzed=row["analyzed"],
        skipped=row["skipped"],
        failed=row["failed"],
        fraction=done / row["total"] if row["total"] else float(row["complete"]),
        eta=duration(_eta(row, row["total"] - done)),
        create_time=timestamp(row["created_at"]),
        end_time=timestamp(row["ended_at"]),
    )
    json_format.ParseDict(row["spec"], message.spec)
    return message


def is_final(message: analysis_pb2.Scan) -> bool:
    """Whether a scan has ended."""
    return message.state in (analysis_pb2.SCAN_STATE_DONE, analysis_pb2.SCAN_STATE_CANCELLED)


def item(row: Row) -> analysis_pb2.ScanItem:
    """A row of ``scan_items`` as an item."""
    message = analysis_pb2.ScanItem(
        object=row["object"] or "",
        track=f"tracks/{row['track_id']}" if row["track_id"] else "",
        state=analysis_pb2.ScanItem.State.Value(f"STATE_{row['state']}"),
        job=f"jobs/{row['job_id']}" if row["job_id"] else "",
    )
    if row["error"]:
        json_format.ParseDict(row["error"], message.error)
    return message


def _state(row: Row) -> analysis_pb2.ScanState.ValueType:
    if row["cancelled"]:
        return analysis_pb2.SCAN_STATE_CANCELLED
    if row["ended_at"] is not None:
        return analysis_pb2.SCAN_STATE_DONE
    return analysis_pb2.SCAN_STATE_RUNNING if row["complete"] else analysis_pb2.SCAN_STATE_OPEN


def _eta(row: Row, left: int) -> float | None:
    """Seconds until all known items are done, at the pace of the last minute; None while more may come."""
    if not row["complete"] or row["ended_at"] is not None:
        return None
    now = dt.datetime.now(dt.UTC)
    silence = max(0.0, (now - row["fed_at"]).total_seconds())
    age = max(1.0, (now - row["created_at"]).total_seconds())
    # A scan younger than the time over which its pace is taken was not there for all of it.
    pace = row["pace"] * math.exp(-silence / PACE_SECONDS) / -math.expm1(-age / PACE_SECONDS)
    return left / pace if left < pace * _LONGEST_SECONDS else None
