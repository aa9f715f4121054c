"""Analysed tracks as rows, without audio, and a SearchService over them."""

from __future__ import annotations

import functools
import hashlib
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from uuid import UUID

import grpc
import numpy as np
from contrafact.engine.v1 import analyzer_pb2
from contrafact.v1 import analysis_pb2, search_pb2, search_pb2_grpc

from servers.orchestrator.api.search import SearchService
from servers.orchestrator.engines.analyzer import Analyzer
from servers.orchestrator.search.index import index_recording, index_track
from servers.platform.server import Server, Service
from servers.platform.settings import Settings
from servers.storage.database import Pool, connect
from servers.storage.outages import OUTAGES

Search: TypeAlias = "search_pb2_grpc.SearchServiceAsyncStub"

OWNER, STRANGER = "local", "stranger"
MODEL = "contrafact-signal-1"
DIMENSIONS, RATE = 512, 1000
HOP, WINDOW = 2.0, 4.0  # seconds


def sound(**parts: float) -> np.ndarray:
    """A vector whose directions are named: ``sound(a=1, b=0.5)``; norm 1."""
    vector = np.zeros(DIMENSIONS)
    for name, value in parts.items():
        vector[ord(name) - ord("a")] = value
    return vector / np.linalg.norm(vector)


def random_sounds(count: int, seed: int = 0, dimensions: int = DIMENSIONS) -> np.ndarray:
    """As recordings are, in clusters of all sizes, with few directions in each [count, dimensions]."""
    shapes, random = np.random.default_rng(seed), np.random.default_rng((seed, count))
    spectrum = np.arange(1, dimensions + 1) ** -0.5
    clusters = min(300, max(3, count // 20))
    sizes = np.arange(1, clusters + 1) ** -0.7
    chosen = random.choice(clusters, size=count, p=sizes / sizes.sum())
    result = np.empty((count, dimensions), np.float32)
    for cluster in range(clusters):
        centre = shapes.normal(size=dimensions) * spectrum
        directions = shapes.normal(size=(24, dimensions)) * spectrum * 0.35
        members = np.flatnonzero(chosen == cluster)
        own = random.normal(size=(len(members), dimensions)) * spectrum * 0.15
        result[members] = centre + random.normal(size=(len(members), 24)) @ directions + own
    return result / np.linalg.norm(result, axis=1, keepdims=True)


def features_of(
    vector: Iterable[float] | None, *, model: str = MODEL, bpm: float = 0, camelot: str = "", lufs: float | None = None
) -> analysis_pb2.Features:
    """What an analysis says of a recording that sounds like ``vector``."""
    features = analysis_pb2.Features()
    if vector is not None:
        features.embedding.model = model
        features.embedding.values.extend(vector)
    if bpm:
        features.tempo.bpm = bpm
    if camelot:
        features.key.camelot = camelot
    if lufs is not None:
        features.loudness.integrated_lufs = lufs
    return features


def segments_of(vectors: Sequence[np.ndarray], model: str = MODEL) -> bytes:
    """Embeddings of stretches of four seconds, every two seconds, as they are stored."""
    if not len(vectors):
        return b""
    values = np.array(vectors, "<f2")
    message = analyzer_pb2.SegmentEmbeddings(
        model=model, window_seconds=WINDOW, hop_seconds=HOP, dimensions=values.shape[1], values=values.tobytes()
    )
    return message.SerializeToString()


class Sounds:
    """Puts tracks into the database."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def clear(self) -> None:
        """Remove all that there is."""
        await self.pool.execute("DELETE FROM playlists")
        await self.pool.execute("DELETE FROM tracks")
        await self.pool.execute("DELETE FROM recordings")

    async def recording(self, seconds: float = 100.0) -> str:
        """A new recording; its digest."""
        sha256 = hashlib.sha256(uuid.uuid4().bytes).hexdigest()
        await self.pool.execute(
            """INSERT INTO recordings (sha256, size_bytes, object_key, container, codec, sample_rate, channels,
                                       frames, mean, std, peak)
               VALUES ($1, 1, 'key', 'wav', 'pcm', $2, 2, $3, 0, 1, 1)""",
            sha256,
            RATE,
            round(seconds * RATE),
        )
        return sha256

    async def analyze(self, sha256: str, features: analysis_pb2.Features, segments: bytes = b"") -> None:
        """Store an analysis as a job does."""
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute(
                """INSERT INTO analyses (sha256, analyzer, summary, details, waveform, segments)
                   VALUES ($1, '1', $2, '', '', $3) ON CONFLICT (sha256) DO UPDATE SET summary = $2, segments = $3""",
                sha256,
                features.SerializeToString(),
                segments,
            )
            await index_recording(connection, sha256)

    async def track(self, sha256: str, *, owner: str = OWNER, tags: Sequence[str] = ()) -> str:
        """A new track as registering one makes it; its name."""
        track_id = uuid.uuid4()
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "INSERT INTO tracks (id, owner, display_name, sha256, tags) VALUES ($1, $2, 'a track', $3, $4)",
                track_id,
                owner,
                sha256,
                list(tags),
            )
            await index_track(connection, track_id)
        return f"tracks/{track_id}"

    async def add(
        self,
        vector: Iterable[float] | None,
        *,
        owner: str = OWNER,
        tags: Sequence[str] = (),
        seconds: float = 100.0,
        segments: Sequence[np.ndarray] = (),
        **told: Any,
    ) -> str:
        """A new track with an analysis, which says what ``features_of`` does; its name."""
        sha256 = await self.recording(seconds)
        await self.analyze(sha256, features_of(vector, **told), segments_of(segments, told.get("model", MODEL)))
        return await self.track(sha256, owner=owner, tags=tags)

    async def delete(self, name: str) -> None:
        """Delete a track and its recording."""
        sha256 = await self.pool.fetchval("DELETE FROM tracks WHERE id = $1 RETURNING sha256", UUID(name[7:]))
        await self.pool.execute("DELETE FROM recordings WHERE sha256 = $1", sha256)

    async def fill(self, vectors: np.ndarray, *, owner: str = OWNER, **columns: Sequence[Any]) -> list[str]:
        """Many tracks at once, one of each row, past ``index``; ``columns`` have a value for each. Their names."""
        ids = [uuid.uuid4() for _ in vectors]
        digests = [hashlib.sha256(i.bytes).hexdigest() for i in ids]
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute(
                """INSERT INTO recordings (sha256, size_bytes, object_key, container, codec, sample_rate, channels,
                                           frames, mean, std, peak)
                   SELECT unnest($1::text[]), 1, 'key', 'wav', 'pcm', 1000, 2, 100000, 0, 1, 1""",
                digests,
            )
            await connection.execute(
                """INSERT INTO tracks (id, owner, display_name, sha256)
                   SELECT i, $3, 'a track', d FROM unnest($1::uuid[], $2::text[]) AS new (i, d)""",
                ids,
                digests,
                owner,
            )
            names = ("track_id", "owner", "model", "embedding", "seconds", "added_at", *columns)
            values = (
                "$1",
                "$2",
                "$3",
                "$4::real[]::halfvec(512)",
                "100",
                "now()",
                *(f"${n + 5}" for n in range(len(columns))),
            )
            await connection.executemany(
                f"INSERT INTO sounds ({', '.join(names)}) VALUES ({', '.join(values)})",
                [
                    (track_id, owner, MODEL, vector.tolist(), *rest)
                    for track_id, vector, *rest in zip(ids, vectors, *columns.values(), strict=True)
                ],
            )
        await self.pool.execute("ANALYZE sounds")
        return [f"tracks/{track_id}" for track_id in ids]


@asynccontextmanager
async def search_service(settings: Settings) -> AsyncIterator[Search]:
    """A server with nothing but SearchService."""
    pool = await connect(settings)
    async with Analyzer(settings) as analyzer:
        service = SearchService(pool, settings, analyzer)
        register = functools.partial(search_pb2_grpc.add_SearchServiceServicer_to_server, service)
        name = search_pb2.DESCRIPTOR.services_by_name["SearchService"].full_name
        server = Server(settings, [Service(name, register)], OUTAGES, port=0)
        port = await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield search_pb2_grpc.SearchServiceStub(channel)
        finally:
            await server.stop()
            await pool.close()
