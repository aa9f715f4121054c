"""Rows of voices and of the pool's settings."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from servers.inference.voices import VoiceFiles
from servers.orchestrator.chunks import Received
from servers.orchestrator.voices.receiving import INDEX, SAMPLE, WEIGHTS
from servers.orchestrator.voices.verification import Register, Verdict
from servers.storage.database import Connection, Pool, Row

UNFINISHED = ("QUEUED", "RUNNING")
CHANGEABLE = (
    *("display_name", "language", "tags", "licence"),
    *("pitch_low", "pitch_median", "pitch_high"),
)


@dataclass(frozen=True, slots=True)
class NewVoice:
    """All that the row of a voice is made of; ``sample`` is its JSON."""

    id: UUID
    owner: str
    request_id: UUID
    display_name: str
    language: str
    tags: list[str]
    licence: str
    register: Register | None
    verdict: Verdict
    files: Mapping[str, Received]
    sample: dict[str, Any] | None


class VoiceStore:
    """The tables of voices and of the pool's settings."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    # Voices

    async def get(self, voice_id: UUID, owner: str) -> Row | None:
        """A voice that can be used, if it is ``owner``'s."""
        return await self._pool.fetchrow(
            "SELECT * FROM voices WHERE id = $1 AND owner = $2 AND state = 'READY'", voice_id, owner
        )

    async def used(self, voice_id: UUID) -> Row | None:
        """Note that a voice is used now; the voice, if it can be."""
        return await self._pool.fetchrow(
            "UPDATE voices SET last_used_at = now() WHERE id = $1 AND state = 'READY' RETURNING *", voice_id
        )

    async def of_request(self, owner: str, request_id: UUID) -> Row | None:
        """The voice that a request imported, in whatever state."""
        return await self._pool.fetchrow("SELECT * FROM voices WHERE owner = $1 AND request_id = $2", owner, request_id)

    async def page(
        self,
        owner: str,
        limit: int,
        before: tuple[dt.datetime, UUID] | None,
        text: str,
        tags: Sequence[str],
        language: str,
    ) -> list[Row]:
        """Voices of ``owner``, newest first, those created before the position ``before``.

        A language is found by its tag or the beginning of one, ignoring case (RFC 4647, basic filtering).
        """
        created_at, voice_id = before or (None, None)
        return await self._pool.fetch(
            """SELECT * FROM voices
               WHERE owner = $1 AND state = 'READY'
                 AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
                 AND position(lower($4) IN lower(display_name)) > 0
                 AND tags @> $5::text[]
                 AND ($6 = '' OR starts_with(lower(language) || '-', lower($6) || '-'))
               ORDER BY created_at DESC, id DESC LIMIT $7""",
            owner,
            created_at,
            voice_id,
            text,
            list(tags),
            language,
            limit,
        )

    async def update(self, voice_id: UUID, changes: Mapping[str, Any]) -> Row | None:
        """Change columns of CHANGEABLE; None if the voice is gone."""
        assert set(changes) <= set(CHANGEABLE)
        columns = "".join(f", {column} = ${number}" for number, column in enumerate(changes, 2))
        return await self._pool.fetchrow(
            f"UPDATE voices SET updated_at = now(){columns} WHERE id = $1 AND state = 'READY' RETURNING *",
            voice_id,
            *changes.values(),
        )

    async def begin(self, connection: Connection, voice: NewVoice) -> None:
        """Insert a voice whose files are about to be stored."""
        register, index, sample = voice.register, voice.files.get(INDEX), voice.sample
        if sample is not None:
            sample = {"size_bytes": voice.files[SAMPLE].size, "sha256": voice.files[SAMPLE].sha256, **sample}
        await connection.execute(
            """INSERT INTO voices (id, owner, request_id, display_name, language, tags, licence,
                                   pitch_low, pitch_median, pitch_high, version, sample_rate, f0, speakers, vectors,
                                   weights_sha256, weights_bytes, index_sha256, index_bytes, sample)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)""",
            voice.id,
            voice.owner,
            voice.request_id,
            voice.display_name,
            voice.language,
            voice.tags,
            voice.licence,
            *((register.low, register.median, register.high) if register else (None, None, None)),
            voice.verdict.version,
            voice.verdict.rate,
            voice.verdict.f0,
            voice.verdict.speakers,
            voice.verdict.vectors,
            voice.files[WEIGHTS].sha256,
            voice.files[WEIGHTS].size,
            index.sha256 if index else "",
            index.size if index else 0,
            sample,
        )

    async def finish(self, connection: Connection, voice_id: UUID) -> Row | None:
        """Make a voice whose files are stored usable; None if it was taken for dead meanwhile."""
        return await connection.fetchrow(
            """UPDATE voices SET state = 'READY', updated_at = created_at
               WHERE id = $1 AND state = 'IMPORTING' RETURNING *""",
            voice_id,
        )

    async def delete(self, voice_id: UUID, *, even_if_used: bool) -> list[Row] | None:
        """Let a voice be no longer; returns the unfinished jobs that use it: not empty and not ``even_if_used`` means
        that nothing was done. None if it is gone already.

        The request that made it may come again, and then makes another voice.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            # No job can begin to use it meanwhile: a reference to the row waits for this lock.
            if not await connection.fetchval(
                "SELECT 1 FROM voices WHERE id = $1 AND state = 'READY' FOR UPDATE", voice_id
            ):
                return None
            jobs = await connection.fetch(
                "SELECT id, owner FROM jobs WHERE voice_id = $1 AND state = ANY($2)", voice_id, UNFINISHED
            )
            if even_if_used or not jobs:
                await connection.execute(
                    """UPDATE voices SET state = 'DELETED', request_id = gen_random_uuid(), updated_at = now()
                       WHERE id = $1""",
                    voice_id,
                )
            return jobs

    async def remove(self, voice_id: UUID) -> None:
        """Remove the row of a voice that is not usable."""
        await self._pool.execute("DELETE FROM voices WHERE id = $1 AND state <> 'READY'", voice_id)

    async def abandoned(self, importing_seconds: float) -> list[UUID]:
        """Voices that were deleted, or whose import died: what is left of them must go."""
        # An import that is slow, not dead, must find that it cannot finish any more before its objects are removed.
        await self._pool.execute(
            """UPDATE voices SET state = 'DELETED', request_id = gen_random_uuid()
               WHERE state = 'IMPORTING' AND updated_at < now() - $1::interval""",
            dt.timedelta(seconds=importing_seconds),
        )
        rows = await self._pool.fetch("SELECT id FROM voices WHERE state = 'DELETED' LIMIT 100")
        return [row["id"] for row in rows]

    async def unknown(self, voice_ids: Sequence[str], *, usable: bool) -> list[str]:
        """Those ids that no row has, or (``usable``) no voice that can be used."""
        rows = await self._pool.fetch(
            "SELECT id::text FROM voices WHERE id::text = ANY($1) AND (NOT $2 OR state = 'READY')",
            list(voice_ids),
            usable,
        )
        return sorted(set(voice_ids) - {row["id"] for row in rows})

    async def recent(self, limit: int) -> list[Row]:
        """The voices that were used last, the last one first."""
        return await self._pool.fetch(
            """SELECT * FROM voices WHERE state = 'READY' AND last_used_at IS NOT NULL
               ORDER BY last_used_at DESC LIMIT $1""",
            limit,
        )

    # The pool's settings

    async def pool_settings(self) -> Row:
        """How the pool is to work."""
        row = await self._pool.fetchrow("SELECT * FROM voice_pool")
        assert row is not None
        return row

    async def update_pool_settings(self, changes: Mapping[str, Any]) -> Row:
        """Change some of the settings."""
        columns = ", ".join(f"{column} = ${number}" for number, column in enumerate(changes, 1))
        row = await self._pool.fetchrow(f"UPDATE voice_pool SET {columns} RETURNING *", *changes.values())
        assert row is not None
        return row


def files_of(row: Row) -> VoiceFiles:
    """A voice as the model knows it."""
    return VoiceFiles(row["id"], row["weights_sha256"], row["index_sha256"])
