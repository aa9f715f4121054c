"""A stream of audio that another process sends: which blocks fit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from servers.platform.errors import invalid

Samples = NDArray[np.float32]

MAX_SAMPLE = 1e6
"""What is louder is no audio, and could become infinite on its way."""
_FLOAT = np.dtype("<f4")


class Received:
    """Checks the blocks of one stream.

    Args:
        channels: of the stream.
        frames: that it has.
    """

    def __init__(self, channels: int, frames: int) -> None:
        self._channels, self._frames = channels, frames
        self._received = 0

    @property
    def complete(self) -> bool:
        """Whether all frames came."""
        return self._received == self._frames

    def block(self, start: int, data: bytes) -> Samples:
        """A block as float32 ``[channels, n]``, which is not to be written to.

        Args:
            start: what the block says is the position of its first frame.
            data: its samples, float32, little-endian, planar; not empty.

        Raises:
            ApiError: it does not fit: WRONG_START, WRONG_SIZE, TOO_MANY_FRAMES or INVALID_SAMPLES.
        """
        if start != self._received:
            message = f"the stream goes on at frame {self._received}, not {start}"
            raise invalid("WRONG_START", message, "block.start", expected=str(self._received))
        if len(data) % (self._channels * _FLOAT.itemsize):
            message = f"{len(data)} bytes are no whole number of frames of {self._channels} channels"
            raise invalid("WRONG_SIZE", message, "block.samples")
        samples = np.frombuffer(data, _FLOAT).reshape(self._channels, -1)
        end = self._received + samples.shape[1]
        if end > self._frames:
            raise invalid("TOO_MANY_FRAMES", f"there are {self._frames} frames, not {end}", "block.samples")
        if not (samples.max() <= MAX_SAMPLE and samples.min() >= -MAX_SAMPLE):  # so is NaN found too
            message = f"a sample is not finite, or beyond ±{MAX_SAMPLE:,.0f}"
            raise invalid("INVALID_SAMPLES", message, "block.samples")
        self._received = end
        return samples

    def check_complete(self) -> None:
        """Raise ApiError, TOO_FEW_FRAMES, if frames are missing."""
        if not self.complete:
            message = f"the end came after {self._received} of {self._frames} frames"
            raise invalid("TOO_FEW_FRAMES", message, received=str(self._received))
