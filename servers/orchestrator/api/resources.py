"""Resource names, pages and rows: what the public services share."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any
from uuid import UUID

import google_crc32c
import grpc
from contrafact.v1 import audio_pb2, track_pb2

from servers.orchestrator.jobs.messages import timestamp
from servers.orchestrator.pipelines.separate import DEFAULT_STEMS, INSTRUMENTAL
from servers.platform.errors import ApiError, invalid, not_found
from servers.platform.identity import principal
from servers.storage.database import Pool, Row
from servers.storage.objects import ObjectMissing, ObjectStore

DEFAULT_PAGE = 50

TRACK_COLUMNS = """t.id, t.owner, t.display_name, t.created_at AS uploaded_at, t.tags, t.marks,
    ARRAY(SELECT DISTINCT stem FROM stems WHERE stems.sha256 = t.sha256) AS stems,
    EXISTS (SELECT 1 FROM analyses WHERE analyses.sha256 = t.sha256) AS analyzed, r.*"""

STEMS_OF_MARKS: dict[str, tuple[str, ...]] = {"STUDIO": DEFAULT_STEMS, "KARAOKE": ("vocals", INSTRUMENTAL)}
"""What is kept for each mark."""


def resource_id(what: str, name: str) -> UUID:
    """The UUID in a resource name such as "tracks/{id}"; what is no UUID exists as little as what is unknown."""
    try:
        return UUID(name.split("/")[1])
    except (ValueError, IndexError):
        raise not_found(what, name) from None


def marked_stems(marks: Iterable[str]) -> set[str]:
    """The stems of all these marks; without any, those of a separation."""
    return {stem for mark in marks for stem in STEMS_OF_MARKS[mark]} or set(DEFAULT_STEMS)


def audio_properties(row: Row) -> audio_pb2.AudioProperties:
    """What a row of ``recordings`` says of its audio."""
    return audio_pb2.AudioProperties(
        container=row["container"],
        codec=row["codec"],
        sample_rate=row["sample_rate"],
        channels=row["channels"],
        frames=row["frames"],
        seconds=row["frames"] / row["sample_rate"],
        bit_depth=row["bit_depth"] or 0,
        peak=row["peak"],
    )


def track(row: Row) -> track_pb2.Track:
    """A row of TRACK_COLUMNS as a message."""
    return track_pb2.Track(
        name=f"tracks/{row['id']}",
        display_name=row["display_name"],
        sha256=row["sha256"],
        size_bytes=row["size_bytes"],
        create_time=timestamp(row["uploaded_at"]),
        audio=audio_properties(row),
        tags=row["tags"],
        marks=[track_pb2.Mark.Value(f"MARK_{mark}") for mark in row["marks"]],
        is_separated=marked_stems(row["marks"]).issubset(row["stems"]),
        is_analyzed=row["analyzed"],
    )


async def find_track(pool: Pool, name: str) -> Row:
    """The caller's track of that resource name, or NOT_FOUND."""
    row = await pool.fetchrow(
        f"SELECT {TRACK_COLUMNS} FROM tracks t JOIN recordings r USING (sha256) WHERE t.id = $1 AND t.owner = $2",
        resource_id("track", name),
        principal().id,
    )
    if row is None:
        raise not_found("track", name)
    return row


def check_mask(paths: Sequence[str], known: Sequence[str] | dict[str, Any]) -> None:
    """INVALID_ARGUMENT unless ``paths`` are some of the ``known`` fields, and one at least."""
    if not paths:
        raise invalid("INVALID_FIELD_MASK", "the mask names no field", "update_mask")
    for path in paths:
        if path not in known:
            raise invalid(
                "INVALID_FIELD_MASK", f"{path!r} cannot be changed; {', '.join(known)} can", "update_mask", path=path
            )


def page_limit(page_size: int) -> int:
    """Number of rows for a page_size, of which 0 is the default."""
    return page_size or DEFAULT_PAGE


def write_token(*position: str) -> str:
    """A page token for the position after which the next page begins."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode()


def read_token(token: str, length: int) -> list[str] | None:
    """The position in a page token; None for the first page."""
    if not token:
        return None
    try:
        position = json.loads(base64.urlsafe_b64decode(token))
    except (binascii.Error, ValueError):
        position = None
    if not isinstance(position, list) or len(position) != length or not all(map(_is_plain, position)):
        raise invalid("INVALID_PAGE_TOKEN", "page_token is not one that this service gave", "page_token")
    return position


def _is_plain(part: object) -> bool:
    return isinstance(part, str) and part.isprintable()  # PostgreSQL knows no NUL, and UTF-8 no surrogates


def read_time_token(token: str) -> tuple[dt.datetime, UUID] | None:
    """The moment and id in the page token of a list ordered by them."""
    position = read_token(token, 2)
    if position is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(position[0])
        if moment.tzinfo is None:
            raise ValueError("a moment of no time zone")
        return moment.astimezone(dt.UTC), UUID(position[1])
    except (ValueError, OverflowError):
        raise invalid("INVALID_PAGE_TOKEN", "page_token is not one that this service gave", "page_token") from None


def time_page(rows: list[Row], limit: int, moment: str = "created_at") -> tuple[list[Row], str]:
    """The rows of one page, of a list ordered by ``moment`` and id, and the token of the next one; "": there is none.

    ``rows`` are those of the page and, if there is one, the first of the next.
    """
    if len(rows) <= limit:
        return rows, ""
    rows = rows[:limit]
    return rows, write_token(rows[-1][moment].isoformat(), str(rows[-1]["id"]))


async def read_chunks(
    objects: ObjectStore, key: str, size: int, offset: int, what: str, name: str
) -> AsyncIterator[audio_pb2.DataChunk]:
    """The bytes of an object from ``offset`` on as messages.

    OUT_OF_RANGE beyond its end; NOT_FOUND of ``what``, such as "track", of that ``name`` if there is no such object.
    """
    if offset > size:
        raise ApiError(
            grpc.StatusCode.OUT_OF_RANGE,
            "OFFSET_OUT_OF_RANGE",
            f"offset {offset} is beyond the end, {size}",
            metadata={"size_bytes": str(size)},
        )
    if offset == size:
        return
    try:
        async for data in objects.read(key, offset):
            yield chunk(offset, data)
            offset += len(data)
    except ObjectMissing:
        raise not_found(what, name) from None


def chunk(offset: int, data: bytes) -> audio_pb2.DataChunk:
    """``data`` at ``offset``, with its checksum."""
    return audio_pb2.DataChunk(offset=offset, data=data, crc32c=google_crc32c.value(data))
