"""The block: the unit of PCM that pipeline stages pass to each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_FRAMES = 65_536
"""The most frames a block made in this package holds (1.5 s at 44.1 kHz, 512 KiB in stereo)."""


@dataclass(frozen=True, slots=True)
class Block:
    """A run of consecutive PCM frames.

    Attributes:
        samples: float32 ``[channels, frames]``; full scale is ±1.0, values beyond it are legal.
        sample_rate: in Hz.
        start: frame position of the first sample within its stream, at ``sample_rate``.
    """

    samples: NDArray[np.float32]
    sample_rate: int
    start: int

    @property
    def channels(self) -> int:
        return int(self.samples.shape[0])

    @property
    def frames(self) -> int:
        return int(self.samples.shape[1])

    @property
    def end(self) -> int:
        """Frame position just after the last sample: the ``start`` of the block that follows."""
        return self.start + self.frames
