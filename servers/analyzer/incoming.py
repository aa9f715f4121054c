"""What comes in of one stream: which blocks fit, and the chunks that they are cut into."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from contrafact.engine.v1 import analyzer_pb2
from numpy.typing import NDArray

from servers.platform.errors import invalid

Samples = NDArray[np.float32]

MAX_SAMPLE = 1e6
"""What is louder is no audio, and could become infinite on its way."""
_FLOAT = np.dtype("<f4")


class Incoming:
    """Cuts the blocks of a stream anew.

    Args:
        spec: of the analysis.
        chunk_frames: of each chunk; the last is shorter.
    """

    def __init__(self, spec: analyzer_pb2.AnalyzeSpec, chunk_frames: int) -> None:
        self._spec = spec
        self._received = 0
        self._chunk = np.zeros((spec.channels, chunk_frames), np.float32)
        self._filled = 0

    def add(self, block: analyzer_pb2.AnalyzeBlock) -> list[Samples]:
        """Take in a block; returns the chunks that it completes, float32 ``[channels, chunk_frames]``.

        Raises:
            ApiError: it does not fit.
        """
        channels, frames = self._spec.channels, self._spec.frames
        if block.start != self._received:
            message = f"the stream goes on at frame {self._received}, not {block.start}"
            raise invalid("WRONG_START", message, "block.start", expected=str(self._received))
        if len(block.samples) % (channels * _FLOAT.itemsize):
            message = f"{len(block.samples)} bytes are no whole number of frames of {channels} channels"
            raise invalid("WRONG_SIZE", message, "block.samples")
        samples = np.frombuffer(block.samples, _FLOAT).reshape(channels, -1)
        end = self._received + samples.shape[1]
        if end > frames:
            raise invalid("TOO_MANY_FRAMES", f"there are {frames} frames, not {end}", "block.samples")
        if not (samples.max() <= MAX_SAMPLE and samples.min() >= -MAX_SAMPLE):  # so is NaN found too
            message = f"a sample is not finite, or beyond ±{MAX_SAMPLE:,.0f}"
            raise invalid("INVALID_SAMPLES", message, "block.samples")
        self._received = end
        return list(self._chunks(samples))

    def _chunks(self, samples: Samples) -> Iterator[Samples]:
        while samples.shape[1]:
            part = samples[:, : self._chunk.shape[1] - self._filled]
            samples = samples[:, part.shape[1] :]
            self._chunk[:, self._filled : self._filled + part.shape[1]] = part
            self._filled += part.shape[1]
            ended = self._received == self._spec.frames and not samples.shape[1]
            if ended or self._filled == self._chunk.shape[1]:
                yield self._chunk[:, : self._filled].copy()
                self._filled = 0

    def check_complete(self) -> None:
        """Raise ApiError if frames are missing."""
        if self._received != self._spec.frames:
            message = f"the end came after {self._received} of {self._spec.frames} frames"
            raise invalid("TOO_FEW_FRAMES", message, received=str(self._received))
