"""The table of analyses: one of each recording, for all who have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from contrafact.engine.v1 import analyzer_pb2
from contrafact.v1 import analysis_pb2

from servers.analyzer.version import ANALYZER, EMBEDDINGS
from servers.orchestrator.analyses.features import is_current, split, version
from servers.storage.database import Connection, Pool, Row


@dataclass(frozen=True, slots=True)
class Made:
    """What the analyzer has made of a recording."""

    analyzer: str
    features: analysis_pb2.Features
    waveform: analysis_pb2.Waveform = field(default_factory=analysis_pb2.Waveform)
    segments: analyzer_pb2.SegmentEmbeddings = field(default_factory=analyzer_pb2.SegmentEmbeddings)


@dataclass(frozen=True, slots=True)
class Found:
    """A track, and the analysis of its recording as far as it is made: without ``create_time`` it is not.

    ``current``: whether that need not be made anew, see ``is_current``.
    """

    track_id: UUID
    sha256: str
    analysis: analysis_pb2.Analysis
    current: bool

    @property
    def made(self) -> bool:
        """Whether there is an analysis."""
        return self.analysis.HasField("create_time")

    @property
    def stale(self) -> bool:
        """Whether there is an analysis, by an older version of the analyzer or with another model's embedding."""
        return self.made and not self.current


class AnalysisStore:
    """Reads and writes analyses.

    Args:
        pool: where they are.
        embedding_model: which is to embed them, see the settings.

    Attributes:
        version: by what they are made now.
    """

    def __init__(self, pool: Pool, embedding_model: str = EMBEDDINGS) -> None:
        self._pool = pool
        self._model = embedding_model
        self.version = version(embedding_model)

    async def is_made(self, sha256: str) -> bool:
        """Whether a recording has been analysed by the present version, or by a newer one; see ``is_current``."""
        row = await self._pool.fetchrow("SELECT analyzer, summary FROM analyses WHERE sha256 = $1", sha256)
        if row is None:
            return False
        return is_current(row["analyzer"], analysis_pb2.Features.FromString(row["summary"]), self._model)

    async def save(self, connection: Connection, sha256: str, made: Made) -> None:
        """Keep an analysis, unless a newer version's is there.

        Raises:
            asyncpg.ForeignKeyViolationError: the recording is gone.
        """
        summary, details = split(made.features)
        await connection.execute(
            """INSERT INTO analyses AS known (sha256, analyzer, summary, details, waveform, segments)
               VALUES ($1, $2, $3, $4, $5, $6)
               ON CONFLICT (sha256) DO UPDATE SET analyzer = excluded.analyzer, summary = excluded.summary,
                   details = excluded.details, waveform = excluded.waveform, segments = excluded.segments,
                   created_at = now()
               WHERE known.analyzer::integer <= excluded.analyzer::integer""",
            sha256,
            made.analyzer,
            *(part.SerializeToString() for part in (summary, details, made.waveform)),
            made.segments.SerializeToString() if made.segments.values else b"",
        )

    async def find(self, track_id: UUID, owner: str, *, full: bool) -> Found | None:
        """A track of ``owner`` and its analysis, with the long lists if ``full``; None: there is no such track."""
        rows = await self._rows([track_id], owner, full=full)
        return self._found(rows[0]) if rows else None

    async def find_all(self, track_ids: Sequence[UUID], owner: str) -> dict[UUID, Found]:
        """Those tracks of ``owner`` that there are and their analyses, without the long lists, by id."""
        return {row["id"]: self._found(row) for row in await self._rows(track_ids, owner, full=False)}

    async def waveform(self, track_id: UUID, owner: str) -> analysis_pb2.Waveform | None:
        """The waveform of an analysed track of ``owner`` in full; None: there is none."""
        data = await self._pool.fetchval(
            "SELECT waveform FROM analyses JOIN tracks USING (sha256) WHERE id = $1 AND owner = $2", track_id, owner
        )
        return None if data is None else analysis_pb2.Waveform.FromString(data)

    async def _rows(self, track_ids: Sequence[UUID], owner: str, *, full: bool) -> list[Row]:
        return await self._pool.fetch(
            f"""SELECT t.id, t.sha256, r.frames::float8 / r.sample_rate AS seconds, a.analyzer, a.summary,
                       {"a.details" if full else "''::bytea"} AS details, a.created_at
                FROM tracks t JOIN recordings r USING (sha256) LEFT JOIN analyses a USING (sha256)
                WHERE t.id = ANY($1) AND t.owner = $2""",
            list(track_ids),
            owner,
        )

    def _found(self, row: Row) -> Found:
        analysis = analysis_pb2.Analysis(track=f"tracks/{row['id']}", seconds=row["seconds"], analyzer=ANALYZER)
        if row["analyzer"] is not None:
            analysis.features.MergeFromString(row["summary"])
            analysis.features.MergeFromString(row["details"] or b"")
            analysis.analyzer = row["analyzer"]
            analysis.create_time.FromDatetime(row["created_at"])
        current = is_current(analysis.analyzer, analysis.features, self._model)
        return Found(row["id"], row["sha256"], analysis, current)
