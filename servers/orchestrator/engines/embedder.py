"""A learned embedding in place of the analyzer's: the network on Triton as an engine that tells one feature."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from typing import Protocol

import numpy as np
from contrafact.engine.v1 import analyzer_pb2
from contrafact.v1 import analysis_pb2

from servers.inference.embedding import Embedder
from servers.media.blocks import Block
from servers.platform.slots import BACKGROUND

_SHORTEST_SECONDS = 1.0


class Listener(Protocol):
    """What tells features of audio: the analyzer, or for one of them what is here."""

    def analyze(
        self, spec: analyzer_pb2.AnalyzeSpec, blocks: AsyncIterable[Block], *, priority: int = BACKGROUND
    ) -> AsyncGenerator[analyzer_pb2.AnalyzeResponse, None]:
        """As ``Analyzer.analyze``, but for errors, and for the report, which only the analyzer gives."""
        ...


class LearnedEmbeddings:
    """Tells the feature EMBEDDING, and no other, by a learned model.

    Args:
        embedder: computes it.
        patient: whether to wait for a model that cannot be loaded yet.
    """

    def __init__(self, embedder: Embedder, *, patient: bool) -> None:
        self._embedder = embedder
        self._patient = patient

    async def analyze(
        self, spec: analyzer_pb2.AnalyzeSpec, blocks: AsyncIterable[Block], *, priority: int = BACKGROUND
    ) -> AsyncGenerator[analyzer_pb2.AnalyzeResponse, None]:
        """Embed ``blocks``; memory grows with their length by one embedding for each window.

        Args:
            spec: rate and number of frames; what else it asks for is not looked at.
            blocks: consecutive blocks from frame 0. Closing them remains the caller's business.
            priority: 1 goes before 2.

        Yields:
            Progress; then the embedding, or that it is unknown; then those of all windows.

        Raises:
            ModelUnavailable, InferenceFailed: as ``Embedder``.
        """
        seconds = spec.frames / spec.sample_rate
        if seconds < _SHORTEST_SECONDS:
            yield _unknown("TOO_SHORT", "The recording is shorter than a second.")
            return
        name = f"embedding of {seconds:.0f} s"
        network = await self._embedder.network(priority=priority, request_id=name, patient=self._patient)
        total, parts = np.zeros(network.dimensions), []
        stream = self._embedder.embed(network, blocks, priority=priority, request_id=name)
        async with aclosing(stream) as embedded:
            async for part in embedded:
                total += part.vectors.sum(axis=0)
                parts.append(part.vectors.astype("<f2"))
                yield analyzer_pb2.AnalyzeResponse(progress=min(1.0, part.seconds / seconds))
        norm = float(np.linalg.norm(total))
        if norm < 1e-6:
            yield _unknown("SILENT", "Nothing in the recording is above -70 dBFS.")
            return
        embedding = analysis_pb2.Embedding(model=network.name, values=(total / norm).astype(np.float32).tolist())
        yield analyzer_pb2.AnalyzeResponse(features=analysis_pb2.Features(embedding=embedding))
        segments = analyzer_pb2.SegmentEmbeddings(
            model=network.name,
            window_seconds=network.window / network.sample_rate,
            hop_seconds=network.hop / network.sample_rate,
            dimensions=network.dimensions,
            values=b"".join(part.tobytes() for part in parts),
        )
        yield analyzer_pb2.AnalyzeResponse(segments=segments)


def _unknown(reason: str, message: str) -> analyzer_pb2.AnalyzeResponse:
    features = analysis_pb2.Features()
    features.unknown.add(feature=analysis_pb2.FEATURE_EMBEDDING, reason=reason, message=message)
    return analyzer_pb2.AnalyzeResponse(features=features)
