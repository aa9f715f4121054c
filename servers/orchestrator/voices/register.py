"""The register of a recorded voice: ``python -m servers.orchestrator.voices.register PATH``.

A program of its own, because it decodes a stranger's file. It prints ``[low, median, high]`` in Hz, or ``null`` if the
recording has too little voice in it, as one line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys

import numpy as np
import soxr
from numpy.typing import NDArray

from model_repository.rvc.register import pitch_range
from servers.media.source import Source

RATE = 16_000  # of swift-f0's input
FRAMES_PER_SECOND = 100
LOWEST, HIGHEST = 50.0, 1100.0  # Hz, what the models sing
MEMORY = 2 << 30  # bytes of data
CPU_SECONDS = 60


def measure(path: str) -> tuple[float, float, float] | None:
    """5th, 50th and 95th percentile in Hz of the pitch in a short recording; None: there is too little voice in it."""
    import swift_f0  # after the limits

    audio = _mono(path)
    found = swift_f0.SwiftF0(threads=1, spin=False).detect(audio, RATE, fmin=LOWEST, fmax=HIGHEST)
    pitch: NDArray[np.float64] = np.where(found.confidence >= 0.5, found.pitch_hz, 0.0)
    # Its frames are 16 ms long, those of a register 10.
    times = np.arange(len(audio) * FRAMES_PER_SECOND // RATE) / FRAMES_PER_SECOND
    nearest = np.rint(times / swift_f0.FRAME_PERIOD).astype(int)
    return pitch_range(pitch[np.minimum(nearest, len(pitch) - 1)])


def _mono(path: str) -> NDArray[np.float32]:
    with Source(path) as source:
        samples = np.concatenate([block.samples.mean(axis=0) for block in source.blocks()])
        converted: NDArray[np.float32] = soxr.resample(samples.astype(np.float32), source.sample_rate, RATE)
        return converted


def _limit() -> None:
    for kind, value in (
        (resource.RLIMIT_DATA, MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CPU, CPU_SECONDS),
    ):
        resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    _limit()
    print(json.dumps(measure(sys.argv[1])))
