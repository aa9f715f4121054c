"""Makes a track of a file: its bytes are stored once, for all who have them, each of whom has one track of them."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from servers.media.errors import MediaError, Reason
from servers.media.probe import TrackFacts
from servers.media.sniff import sniff
from servers.orchestrator.search.index import index_track
from servers.platform.tasks import to_the_end
from servers.storage import keys
from servers.storage.database import Connection, Pool, exclusive
from servers.storage.objects import ObjectStore

PROBE_SECONDS = 600.0
HEAD_BYTES = 128 * 1024  # enough to tell what is no audio at all

Probe = Callable[[Path], Awaitable[TrackFacts]]
Alongside = Callable[[Connection, UUID], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class NewTrack:
    """Whose track it is to be, and of what.

    ``sha256`` and ``size`` are those of the bytes of the file at ``path``; ``probe`` examines it.
    """

    owner: str
    display_name: str
    path: Path
    sha256: str
    size: int
    probe: Probe
    tags: Sequence[str] = ()


class Registrar:
    """Registers tracks."""

    def __init__(self, pool: Pool, objects: ObjectStore) -> None:
        self._pool = pool
        self._objects = objects

    async def examine(self, new: NewTrack) -> TrackFacts | None:
        """What is to be known of the bytes of a new track; None if somebody has the same ones already.

        Raises what its ``probe`` raises.
        """
        return None if await self._is_known(self._pool, new.sha256) else await new.probe(new.path)

    async def register(self, new: NewTrack, facts: TrackFacts | None, alongside: Alongside) -> tuple[UUID, bool]:
        """Make a track, or find the one that its owner has of the same bytes, which then stays as it is.

        Who is cancelled meanwhile still waits for what would leave an object that nobody knows, for a day.

        Args:
            new: The track.
            facts: What ``examine`` found.
            alongside: Writes what else is to be written, in the same transaction, given the track's id.

        Returns:
            The track's id, and whether there was one.
        """
        # Against who stores, or deletes, the same bytes.
        async with exclusive(self._pool, new.sha256) as connection:
            known = await self._is_known(connection, new.sha256)
            if not known and facts is None:  # deleted since we looked
                facts = await new.probe(new.path)
            return await to_the_end(self._store(connection, new, None if known else facts, alongside))

    async def _store(
        self, connection: Connection, new: NewTrack, facts: TrackFacts | None, alongside: Alongside
    ) -> tuple[UUID, bool]:
        """Store the bytes, unless that was done (no ``facts``), and the rows."""
        if facts is not None:
            key = keys.track_source(new.sha256, facts.extension)
            await self._objects.put_file(key, new.path, "application/octet-stream")
        async with connection.transaction():
            if facts is not None:
                await _insert_recording(connection, new, facts)
            track_id, existed = await _insert_track(connection, new)
            await alongside(connection, track_id)
        return track_id, existed

    async def _is_known(self, database: Pool | Connection, sha256: str) -> bool:
        return bool(await database.fetchval("SELECT 1 FROM recordings WHERE sha256 = $1", sha256))


async def _insert_track(connection: Connection, new: NewTrack) -> tuple[UUID, bool]:
    created: UUID | None = await connection.fetchval(
        """INSERT INTO tracks (id, owner, display_name, sha256, tags) VALUES ($1, $2, $3, $4, $5)
           ON CONFLICT (owner, sha256) DO NOTHING RETURNING id""",
        uuid4(),
        new.owner,
        clean_name(new.display_name),
        new.sha256,
        normal_tags(new.tags),
    )
    if created is not None:
        await index_track(connection, created)
        return created, False
    found: UUID = await connection.fetchval(
        "SELECT id FROM tracks WHERE owner = $1 AND sha256 = $2", new.owner, new.sha256
    )
    return found, True


async def _insert_recording(connection: Connection, new: NewTrack, facts: TrackFacts) -> None:
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
