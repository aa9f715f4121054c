"""Signals to test with, and ways to cut them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
RATE = 44_100


def sine(hertz: float, seconds: float, level_db: float, *, rate: int = RATE, phase: float = 0.0) -> Samples:
    """The same sine on both channels, its peak at ``level_db``."""
    time = np.arange(round(seconds * rate)) / rate
    wave = 10 ** (level_db / 20) * np.sin(2 * np.pi * hertz * time + phase)
    return np.stack([wave, wave]).astype(np.float32)


def noise(seconds: float, level_db: float, *, seed: int, rate: int = RATE, channels: int = 2) -> Samples:
    """White noise with a standard deviation of ``level_db``."""
    values = np.random.default_rng(seed).standard_normal((channels, round(seconds * rate)))
    return (10 ** (level_db / 20) * values).astype(np.float32)


def in_cuts(samples: Samples, cuts: Iterable[int]) -> list[Samples]:
    """``samples`` in pieces that end at ``cuts`` and at the end."""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < samples.shape[1]}), samples.shape[1]]
    return [samples[:, begin:end] for begin, end in pairwise(edges)]
