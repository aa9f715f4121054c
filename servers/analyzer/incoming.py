"""What comes in of one stream, cut into chunks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from contrafact.engine.v1 import analyzer_pb2

from servers.media.received import Received, Samples


class Incoming:
    """Cuts the blocks of a stream anew.

    Args:
        spec: of the analysis.
        chunk_frames: of each chunk; the last is shorter.
    """

    def __init__(self, spec: analyzer_pb2.AnalyzeSpec, chunk_frames: int) -> None:
        self._received = Received(spec.channels, spec.frames)
        self._chunk = np.zeros((spec.channels, chunk_frames), np.float32)
        self._filled = 0

    def add(self, block: analyzer_pb2.AnalyzeBlock) -> list[Samples]:
        """Take in a block; returns the chunks that it completes, float32 ``[channels, chunk_frames]``.

        Raises:
            ApiError: it does not fit.
        """
        return list(self._chunks(self._received.block(block.start, block.samples)))

    def _chunks(self, samples: Samples) -> Iterator[Samples]:
        while samples.shape[1]:
            part = samples[:, : self._chunk.shape[1] - self._filled]
            samples = samples[:, part.shape[1] :]
            self._chunk[:, self._filled : self._filled + part.shape[1]] = part
            self._filled += part.shape[1]
            ended = self._received.complete and not samples.shape[1]
            if ended or self._filled == self._chunk.shape[1]:
                yield self._chunk[:, : self._filled].copy()
                self._filled = 0

    def check_complete(self) -> None:
        """Raise ApiError if frames are missing."""
        self._received.check_complete()
