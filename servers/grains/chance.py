"""Chance that is counted, not drawn: what it gives depends only on the seed and on what it is asked for."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Purpose(IntEnum):
    """What is left to chance."""

    COUNT = 0
    CHOOSE = 1
    PLACE = 2
    CUT = 3


def draws(seed: int, starts: NDArray[np.int64], numbers: NDArray[np.int64], purpose: Purpose) -> NDArray[np.float64]:
    """A number from 0 up to 1 for each grain.

    Args:
        seed: 0 to 2**32 - 1.
        starts: first frames of the notes.
        numbers: which grain of its note each is, from 0.
    """
    bits = _mixed(np.full(starts.shape, seed, np.uint64))
    for each in (starts.astype(np.uint64), numbers.astype(np.uint64), np.uint64(purpose)):
        bits = _mixed(bits ^ each)
    return (bits >> np.uint64(11)) * 2.0**-53


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64: G. Steele, D. Lea and C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014."""
    bits = bits + _STEP
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    return bits ^ (bits >> np.uint64(31))
