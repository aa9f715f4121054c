"""Recordings, whose bytes are stored once for all who have them, and the tracks that are made of them."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import UUID, uuid4

from servers.media.errors import MediaError, Reason
from servers.media.probe import TrackFacts
from servers.media.sniff import sniff
from servers.orchestrator.search.index import index_track
from servers.platform.errors import ApiError
from servers.platform.tasks import to_the_end
from servers.storage import keys
from servers.storage.database import Connection, Pool, exclusive
from servers.storage.objects import ObjectStore

PROBE_SECONDS = 600.0
HEAD_BYTES = 128 * 1024  # enough to tell what is no audio at all

T = TypeVar("T")

Probe = Callable[[Path], Awaitable[TrackFacts]]
Alongside = Callable[[Connection, UUID], Awaitable[None]]

UNUSED = " AND ".join(
    f"NOT EXISTS (SELECT 1 FROM {table} WHERE {table}.sha256 = recordings.sha256)"
    for table in ("tracks", "styles", "grain_libraries")
)


@dataclass(frozen=True, slots=True)
class NewRecording:
    """The file at ``path``, with digest and size of its bytes; ``probe`` examines it."""

    path: Path
    sha256: str
    size: int
    probe: Probe


@dataclass(frozen=True, slots=True)
class NewTrack:
    """Whose track it is to be, and of what."""

    owner: str
    display_name: str
    recording: NewRecording
    tags: Sequence[str] = ()


class Registrar:
    """Registers recordings and tracks, and forgets recordings."""

    def __init__(self, pool: Pool, objects: ObjectStore) -> None:
        self._pool = pool
        self._objects = objects

    async def examine(self, new: NewRecording) -> TrackFacts | None:
        """What is to be known of the bytes of a file; None if somebody has the same ones already.

        Raises what its ``probe`` raises.
        """
        return None if await self._is_known(self._pool, new.sha256) else await new.probe(new.path)

    async def register(self, new: NewTrack, facts: TrackFacts | None, alongside: Alongside) -> tuple[UUID, bool]:
        """Make a track, or find the one that its owner has of the same bytes, which then stays as it is.

        Args:
            new: The track.
            facts: What ``examine`` found.
            alongside: Writes what else is to be written, in the same transaction, given the track's id.

        Returns:
            The track's id, and whether there was one.
        """

        async def insert(connection: Connection) -> tuple[UUID, bool]:
            track_id, existed = await _insert_track(connection, new)
            await alongside(connection, track_id)
            return track_id, existed

        return await self.keep(new.recording, facts, insert)

    async def keep(self, new: NewRecording, facts: TrackFacts | None, use: Callable[[Connection], Awaitable[T]]) -> T:
        """Store a recording, unless somebody has the same.

        Who is cancelled meanwhile still waits for what would leave an object that nobody knows, for a day.

        Args:
            new: The recording.
            facts: What ``examine`` found.
            use: Writes, in the same transaction, what uses it. If it refuses, nothing of the recording stays.

        Returns:
            What ``use`` returns.
        """
        # Against who stores, or deletes, the same bytes.
        async with exclusive(self._pool, new.sha256) as connection:
            known = await self._is_known(connection, new.sha256)
            if not known and facts is None:  # deleted since we looked
                facts = await new.probe(new.path)
            return await to_the_end(self._store(connection, new, None if known else facts, use))

    async def _store(
        self,
        connection: Connection,
        new: NewRecording,
        facts: TrackFacts | None,
        use: Callable[[Connection], Awaitable[T]],
    ) -> T:
        """Store the bytes, unless that was done (no ``facts``), and the rows."""
        if facts is None:
            async with connection.transaction():
                return await use(connection)
        key = keys.track_source(new.sha256, facts.extension)
        await self._objects.put_file(key, new.path, "application/octet-stream")
        try:
            async with connection.transaction():
                await _insert_recording(connection, new, facts)
                return await use(connection)
        except ApiError:  # not an outage, after which the rows may be there
            await self._objects.delete([key])
            raise

    async def forget_if_unused(self, sha256: str) -> bool:
        """Remove a recording with all that was made of it, unless anybody uses it; returns whether it was removed."""
        async with exclusive(self._pool, sha256) as connection:
            object_key = await forget_unused(connection, sha256)
            # After the commit: rows whose bytes are gone would be worse than bytes without a row.
            if object_key is not None:
                await remove_bytes(self._objects, sha256, object_key)
        return object_key is not None

    async def _is_known(self, database: Pool | Connection, sha256: str) -> bool:
        return bool(await database.fetchval("SELECT 1 FROM recordings WHERE sha256 = $1", sha256))


async def forget_unused(connection: Connection, sha256: str) -> str | None:
    """Remove the row of a recording that nobody uses, of whose bytes the caller has the lock; the key of its object."""
    key: str | None = await connection.fetchval(
        f"DELETE FROM recordings WHERE sha256 = $1 AND {UNUSED} RETURNING object_key", sha256
    )
    return key


async def remove_bytes(objects: ObjectStore, sha256: str, object_key: str) -> None:
    """Remove the objects of a recording whose row is gone."""
    await objects.delete([object_key])
    await objects.delete_prefix(keys.stems_prefix(sha256))


async def _insert_track(connection: Connection, new: NewTrack) -> tuple[UUID, bool]:
    created: UUID | None = await connection.fetchval(
        """INSERT INTO tracks (id, owner, display_name, sha256, tags) VALUES ($1, $2, $3, $4, $5)
           ON CONFLICT (owner, sha256) DO NOTHING RETURNING id""",
        uuid4(),
        new.owner,
        clean_name(new.display_name),
        new.recording.sha256,
        normal_tags(new.tags),
    )
    if created is not None:
        await index_track(connection, created)
        return created, False
    found: UUID = await connection.fetchval(
        "SELECT id FROM tracks WHERE owner = $1 AND sha256 = $2", new.owner, new.recording.sha256
    )
    return found, True


async def _insert_recording(connection: Connection, new: NewRecording, facts: TrackFacts) -> None:
    await connection.execute(
        """INSERT INTO recordings (sha256, size_bytes, object_key, container, codec, sample_rate, channels,
                                   frames, bit_depth, mean, std, peak)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)""",
        new.sha256,
        new.size,
        keys.track_source(new.sha256, facts.extension),
        facts.container,
        facts.codec,
        facts.sample_rate,
        facts.channels,
        facts.frames,
        facts.bit_depth,
        facts.mean,
        facts.std,
        facts.peak,
    )


def check_head(head: bytes, size: int) -> None:
    """Refuse what plainly is no audio before the rest of it is looked at.

    Args:
        head: The first HEAD_BYTES, or all there is.
        size: Of the whole file; if that is not known, as large as it may be.

    Raises:
        MediaError: NOT_AUDIO, UNSUPPORTED_CONTAINER.
    """
    if head.startswith(b"ID3") and len(head) < size:  # a tag, perhaps with pictures, may be longer than this
        return
    try:
        sniff(io.BytesIO(head), size)
    except MediaError as error:
        if error.reason in (Reason.NOT_AUDIO, Reason.UNSUPPORTED_CONTAINER):
            raise


def normal_tags(tags: Iterable[str]) -> list[str]:
    """Tags in the one form (NFC) in which they are stored and looked for, each once."""
    return list(dict.fromkeys(unicodedata.normalize("NFC", tag) for tag in tags))


def clean_name(name: str) -> str:
    """A display name without folders, control characters and direction tricks; never empty."""
    base = re.split(r"[/\\]", name.strip())[-1]
    with suppress(UnicodeError):
        base = unicodedata.normalize("NFC", base)
    base = "".join(character for character in base if unicodedata.category(character)[0] != "C").strip()
    return base if base.strip(".") else "untitled"
