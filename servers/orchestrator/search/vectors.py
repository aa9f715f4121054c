"""Embeddings as vectors that compare by their inner product."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from contrafact.engine.v1 import analyzer_pb2
from numpy.typing import ArrayLike, NDArray

DIMENSIONS = 512  # of what is searched; embeddings of models with fewer values end in zeros

Vector = NDArray[np.float32]  # [512], of norm 1


def padded(values: ArrayLike) -> Vector | None:
    """An embedding [n] as it is searched; None if all of it is zero.

    Raises:
        ValueError: it has more than 512 values.
    """
    given = np.asarray(values, np.float64)
    if given.size > DIMENSIONS:
        raise ValueError(f"an embedding of {given.size} values cannot be searched; {DIMENSIONS} are the most")
    norm = float(np.linalg.norm(given))
    if norm == 0:
        return None
    result = np.zeros(DIMENSIONS, np.float32)
    result[: given.size] = given / norm
    return result


def stored(sent: bytes) -> Vector:
    """What PostgreSQL's ``halfvec_send`` gives: two 16-bit numbers, then float16, all big-endian."""
    return np.frombuffer(sent, ">f2", offset=4).astype(np.float32)


@dataclass(frozen=True)
class Segments:
    """Embeddings of overlapping stretches of a recording.

    Attributes:
        model: that made them.
        window_seconds, hop_seconds: length of each, and from the beginning of one to that of the next.
        values: float32 [stretches, dimensions], each of norm 1 or, where there is silence, 0.
    """

    model: str
    window_seconds: float
    hop_seconds: float
    values: NDArray[np.float32]

    @classmethod
    def parse(cls, data: bytes) -> Segments:
        """The column ``segments`` of an analysis: protobuf SegmentEmbeddings, or nothing."""
        message = analyzer_pb2.SegmentEmbeddings.FromString(data)
        values = np.frombuffer(message.values, "<f2").astype(np.float32).reshape(-1, message.dimensions or 1)
        return cls(message.model, message.window_seconds, message.hop_seconds, values)

    def between(self, start: float, end: float) -> NDArray[np.float32]:
        """Those that overlap the stretch from ``start`` to ``end``, in seconds [stretches, dimensions]."""
        begins = np.arange(len(self.values)) * self.hop_seconds
        return self.values[(begins < end) & (begins + self.window_seconds > start)]

    def best_start(self, target: Vector) -> float | None:
        """Where the stretch most similar to ``target`` begins, in seconds; None if there is none but silence."""
        heard = self.values.any(axis=1)
        if not heard.any():
            return None
        scores = np.where(heard, self.values @ target[: self.values.shape[1]], -np.inf)
        return float(np.argmax(scores)) * self.hop_seconds
