"""A library of recordings and what was made of them, as rows and objects, without anybody who makes them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

from contrafact.v1.grain_pb2 import Cut
from google.protobuf import json_format

from servers.orchestrator.jobs.findings import Stores
from servers.orchestrator.styles.cuts import completed, library_id
from servers.platform.settings import Settings
from servers.storage import keys
from servers.storage.database import connect
from servers.storage.objects import ObjectStore

OWNER = "somebody"
STEM_BYTES, COVER_BYTES, PIECE_BYTES = 30, 20, 10
AS_JSON = json_format.MessageToDict(completed(Cut()), preserving_proto_field_name=True)
TABLES = ["recordings", "tracks", "uploads", "upload_pieces", "stems", "jobs", "covers", "live_pieces"]
TABLES += ["styles", "grain_libraries"]


class Library(Stores):
    """Puts things into ``Stores``."""

    async def clear(self) -> None:
        """Remove all that there is."""
        await self.pool.execute(
            "TRUNCATE recordings, tracks, uploads, stems, jobs, covers, live_pieces, chores CASCADE"
        )
        for prefix in ("tracks/", "stems/", "covers/", "live/", "uploads/", "voices/", "styles/"):
            await self.objects.delete_prefix(prefix)

    async def recording(self, *, stored: bool = True) -> tuple[str, UUID]:
        """A recording with one track: its digest and the track's id."""
        track, sha256 = uuid4(), hashlib.sha256(uuid4().bytes).hexdigest()
        key = keys.track_source(sha256, "wav")
        await self.pool.execute(
            """INSERT INTO recordings (sha256, size_bytes, object_key, container, codec, sample_rate, channels,
                                       frames, mean, std, peak)
               VALUES ($1, 100, $2, 'wav', 'pcm', 44100, 2, 1, 0, 1, 1)""",
            sha256,
            key,
        )
        await self.pool.execute(
            "INSERT INTO tracks (id, owner, display_name, sha256) VALUES ($1, $2, 'a track', $3)", track, OWNER, sha256
        )
        if stored:
            await self.objects.put(key, bytes(100))
        return sha256, track

    async def stem(self, sha256: str, stem: str = "vocals", *, stored: bool = True, idle_days: float = 0) -> str:
        """A stem of a recording: its key."""
        key = keys.stem(sha256, "htdemucs-1", stem, "0" * 64, "flac")
        await self.pool.execute(
            """INSERT INTO stems (sha256, model, stem, format, object_key, size_bytes, content_sha256, sample_rate,
                                  channels, frames, peak, clipped, used_at)
               VALUES ($1, 'htdemucs-1', $2, 'flac', $3, $4, '', 44100, 2, 1, 1, 0, now() - $5 * interval '1 day')""",
            sha256,
            stem,
            key,
            STEM_BYTES,
            idle_days,
        )
        if stored:
            await self.objects.put(key, bytes(STEM_BYTES))
        return key

    async def cover(self, track: UUID, *, stored: bool = True) -> str:
        """A cover of a track: its key."""
        cover = uuid4()
        key = keys.cover(cover, "ab" * 32, "flac")
        await self.pool.execute(
            """INSERT INTO covers (id, owner, track_id, spec, semitones, format, object_key, size_bytes,
                                   content_sha256, sample_rate, channels, frames, peak, clipped)
               VALUES ($1, $2, $3, '{}', 0, 'flac', $4, $5, '', 44100, 2, 1, 1, 0)""",
            cover,
            OWNER,
            track,
            key,
            COVER_BYTES,
        )
        if stored:
            await self.objects.put(key, bytes(COVER_BYTES))
        return key

    async def job(self, track: UUID, state: str = "QUEUED", *, lock: str | None = None, ended_days: float = 0) -> UUID:
        """A job on a track."""
        job = uuid4()
        await self.pool.execute(
            """INSERT INTO jobs (id, owner, request_id, kind, priority, state, track_id, spec, lock,
                                 heartbeat_at, ended_at)
               VALUES ($1, $2, $1, 'SEPARATE', 'BACKGROUND', $3, $4, '{}', $5,
                       CASE WHEN $3 = 'RUNNING' THEN now() END,
                       CASE WHEN $3 NOT IN ('QUEUED', 'RUNNING') THEN now() - $6 * interval '1 day' END)""",
            job,
            OWNER,
            state,
            track,
            lock,
            ended_days,
        )
        return job

    async def piece(self, job: UUID, start: int = 0) -> str:
        """A live piece of a job: its key."""
        await self.pool.execute(
            """INSERT INTO live_pieces (job_id, attempt, stem, start, size_bytes, frames_ready)
               VALUES ($1, 1, 'vocals', $2, $3, 0)""",
            job,
            start,
            PIECE_BYTES,
        )
        key = keys.live_piece(job, 1, "vocals", start)
        await self.objects.put(key, bytes(PIECE_BYTES))
        return key

    async def upload(self, *, age_days: float = 0) -> str:
        """An upload with one piece: the piece's key."""
        upload = uuid4()
        await self.pool.execute(
            """INSERT INTO uploads (id, owner, request_id, display_name, size_bytes, sha256, committed_bytes,
                                    updated_at)
               VALUES ($1, $2, $1, 'x', 200, '', $3, now() - $4 * interval '1 day')""",
            upload,
            OWNER,
            PIECE_BYTES,
            age_days,
        )
        await self.pool.execute("INSERT INTO upload_pieces VALUES ($1, 0, $2)", upload, PIECE_BYTES)
        key = keys.upload_piece(upload, 0)
        await self.objects.put(key, bytes(PIECE_BYTES))
        return key

    async def style(self, sha256: str, *, job_state: str = "SUCCEEDED", cut: dict[str, Any] | None = None) -> UUID:
        """A style of a recording, of whose job nothing was done: its id."""
        style, cut = uuid4(), cut or AS_JSON
        library = library_id(sha256, json_format.ParseDict(cut, Cut()))
        job = uuid4()
        await self.pool.execute(
            """INSERT INTO jobs (id, owner, request_id, kind, priority, state, spec, lock, error,
                                 heartbeat_at, ended_at)
               VALUES ($1, $2, $1, 'STYLE', 'INTERACTIVE', $3, $4, 'style:' || $5::uuid, $6,
                       CASE WHEN $3 = 'RUNNING' THEN now() END,
                       CASE WHEN $3 NOT IN ('QUEUED', 'RUNNING') THEN now() END)""",
            job,
            OWNER,
            job_state,
            {"style": f"styles/{style}", "cut": cut},
            library,
            {"reason": "NO_GRAINS", "message": "no", "retryable": False} if job_state == "FAILED" else None,
        )
        await self.pool.execute(
            "INSERT INTO styles VALUES ($1, $2, $1, 'a style', $3, $4, $5, $6)", style, OWNER, sha256, cut, library, job
        )
        return style

    async def grain_library(self, style: UUID, data: bytes = b"grains", *, stored: bool = True) -> tuple[str, str]:
        """The library of a style, and its preview, in the stores: their keys."""
        row = await self.pool.fetchrow("SELECT * FROM styles WHERE id = $1", style)
        assert row is not None
        digest = hashlib.sha256(data).hexdigest()
        key, preview = keys.library(row["library_id"], digest), keys.preview(row["library_id"], "0" * 64, "opus")
        await self.pool.execute(
            """INSERT INTO grain_libraries VALUES ($1, $2, $3, 1, $4, $5, $6, 1, 0, 1, NULL, NULL,
                                                   $7, 7, $8, 48000, 1, 480, 0.5, 0)""",
            *(row["library_id"], row["sha256"], row["cut"], key, len(data), digest, preview, "0" * 64),
        )
        if stored:
            await self.objects.put(key, data)
            await self.objects.put(preview, b"preview")
        return key, preview

    async def everything(self) -> dict[str, Any]:
        """All keys of objects, and all rows by table."""
        found: dict[str, Any] = {
            "objects": sorted({key for page in [p async for p in self.objects.pages("")] for key, *_ in page})
        }
        for table in TABLES:
            rows = await self.pool.fetch(f"SELECT * FROM {table} AS t ORDER BY t::text")
            found[table] = [dict(row) for row in rows]
        return found


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Library]:
    """An empty library."""
    pool, objects = await connect(settings), ObjectStore(settings)
    library = Library(pool, objects, settings)
    await library.clear()
    try:
        yield library
    finally:
        await objects.close()
        await pool.close()
