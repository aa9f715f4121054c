"""Which tracks can be found, and by what: the rows of ``sounds``.

A recording's analysis belongs to all who have the recording; a row here belongs to one track of one owner.
"""

from __future__ import annotations

from uuid import UUID

from contrafact.v1 import analysis_pb2

from servers.orchestrator.search.camelot import position
from servers.orchestrator.search.vectors import padded
from servers.storage.database import Connection

_INDEX = """
INSERT INTO sounds (track_id, owner, model, embedding, bpm, key, loudness, seconds, added_at)
SELECT t.id, t.owner, $2, $3::real[]::halfvec(512), $4, $5, $6, r.frames::float8 / r.sample_rate, t.created_at
FROM tracks t JOIN recordings r USING (sha256) WHERE t.sha256 = $1 AND ($7::uuid IS NULL OR t.id = $7)
ON CONFLICT (track_id) DO UPDATE SET model = excluded.model, embedding = excluded.embedding, bpm = excluded.bpm,
    key = excluded.key, loudness = excluded.loudness
WHERE (sounds.model, sounds.embedding, sounds.bpm, sounds.key, sounds.loudness)
    IS DISTINCT FROM (excluded.model, excluded.embedding, excluded.bpm, excluded.key, excluded.loudness)
"""


async def index_recording(connection: Connection, sha256: str) -> None:
    """Let all tracks of a recording be found by the analysis that is stored of it; without one, do nothing.

    Call it in the transaction that stores the analysis, afterwards.
    """
    await _index(connection, sha256, None)


async def index_track(connection: Connection, track_id: UUID) -> None:
    """Let a new track be found, if its recording is analysed; if not, do nothing.

    Call it in the transaction that inserts the track, afterwards. Tags are read where they are: no need to call it when
    they change.
    """
    sha256 = await connection.fetchval("SELECT sha256 FROM tracks WHERE id = $1", track_id)
    if sha256 is not None:
        await _index(connection, sha256, track_id)


async def _index(connection: Connection, sha256: str, track_id: UUID | None) -> None:
    # One transaction may insert a track while another stores the analysis: neither sees the other's row, so the second
    # must wait until it does.
    await connection.execute("SELECT 1 FROM recordings WHERE sha256 = $1 FOR NO KEY UPDATE", sha256)
    summary = await connection.fetchval("SELECT summary FROM analyses WHERE sha256 = $1", sha256)
    if summary is None:
        return
    features = analysis_pb2.Features.FromString(summary)
    embedding = padded(features.embedding.values)
    await connection.execute(
        _INDEX,
        sha256,
        features.embedding.model if embedding is not None else None,
        None if embedding is None else embedding.tolist(),
        features.tempo.bpm or None,
        position(features.key.camelot) if features.key.camelot else None,
        features.loudness.integrated_lufs if features.HasField("loudness") else None,
        track_id,
    )
