"""Rows of smart playlists."""

from __future__ import annotations

import datetime as dt
import unicodedata
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from contrafact.v1 import search_pb2
from google.protobuf import json_format

from servers.orchestrator.jobs.messages import timestamp
from servers.orchestrator.search.examples import check_query
from servers.platform.errors import invalid
from servers.storage.database import Pool, Row

DEFAULT_TRACKS = 100
COLUMNS = {"display_name": "display_name", "query": "query", "limit": "track_limit", "ordered": "ordered"}


def columns_of(playlist: search_pb2.Playlist, paths: Sequence[str], model: str) -> dict[str, Any]:
    """What the fields ``paths`` of a playlist become in its row; INVALID_ARGUMENT for what cannot be."""
    values: dict[str, Any] = {}
    if "display_name" in paths:
        values["display_name"] = _plain(playlist.display_name)
        if not values["display_name"]:
            raise invalid("INVALID_FIELD", "has nothing in it that can be read", "playlist.display_name")
    if "query" in paths:
        check_query(playlist.query, model, "playlist.query")
        for field in ("tags", "without_tags"):
            if any("\0" in tag for tag in getattr(playlist.query.filter, field)):  # PostgreSQL does not keep it
                raise invalid("INVALID_FIELD", "tags must be printable", f"playlist.query.filter.{field}")
        values["query"] = json_format.MessageToDict(playlist.query)
    if "limit" in paths:
        values["track_limit"] = playlist.limit or DEFAULT_TRACKS
    if "ordered" in paths:
        values["ordered"] = playlist.ordered
    return values


def message(row: Row) -> search_pb2.Playlist:
    """A row as a message."""
    return search_pb2.Playlist(
        name=f"playlists/{row['id']}",
        display_name=row["display_name"],
        query=json_format.ParseDict(row["query"], search_pb2.TrackQuery()),
        limit=row["track_limit"],
        ordered=row["ordered"],
        create_time=timestamp(row["created_at"]),
    )


class PlaylistStore:
    """The table of playlists."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create(self, owner: str, request_id: UUID, values: dict[str, Any]) -> Row:
        """A new playlist, or the one that the request has made before, as it is now."""
        row = await self._pool.fetchrow(
            """INSERT INTO playlists (id, owner, request_id, display_name, query, track_limit, ordered)
               VALUES ($1, $2, $3, $4, $5, $6, $7)
               ON CONFLICT (owner, request_id) DO UPDATE SET request_id = excluded.request_id RETURNING *""",
            uuid4(),
            owner,
            request_id,
            *(values[column] for column in COLUMNS.values()),
        )
        assert row is not None
        return row

    async def get(self, owner: str, playlist_id: UUID) -> Row | None:
        """A playlist of ``owner``."""
        return await self._pool.fetchrow("SELECT * FROM playlists WHERE id = $1 AND owner = $2", playlist_id, owner)

    async def page(self, owner: str, limit: int, before: tuple[dt.datetime, UUID] | None) -> list[Row]:
        """Playlists of ``owner``, newest first, those created before the position ``before``."""
        return await self._pool.fetch(
            """SELECT * FROM playlists
               WHERE owner = $1 AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
               ORDER BY created_at DESC, id DESC LIMIT $4""",
            owner,
            *(before or (None, None)),
            limit,
        )

    async def update(self, owner: str, playlist_id: UUID, values: dict[str, Any]) -> Row | None:
        """Change columns of COLUMNS; None if there is no such playlist."""
        columns = ", ".join(f"{column} = ${number}" for number, column in enumerate(values, 3))
        return await self._pool.fetchrow(
            f"UPDATE playlists SET {columns} WHERE id = $1 AND owner = $2 RETURNING *",
            playlist_id,
            owner,
            *values.values(),
        )

    async def delete(self, owner: str, playlist_id: UUID) -> bool:
        """Whether there was such a playlist."""
        return (
            await self._pool.fetchval(
                "DELETE FROM playlists WHERE id = $1 AND owner = $2 RETURNING true", playlist_id, owner
            )
            or False
        )


def _plain(text: str) -> str:
    """A name without control characters and direction tricks."""
    normal = unicodedata.normalize("NFC", text)
    return "".join(each for each in normal if unicodedata.category(each)[0] != "C").strip()
