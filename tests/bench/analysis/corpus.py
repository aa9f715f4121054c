"""The collections that the embedding is made with and measured on, and what is computed of their recordings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from servers.analyzer.embedding import EmbeddingFeature
from servers.analyzer.logspectrum import FFT_LENGTH, HOP, Samples
from servers.media.frames import Framer, power_spectra
from tests.analyzer.changes import CHANGES
from tests.analyzer.pieces import piece

DESIGN, HELD_OUT = 1, 3
"""Seeds: no family of one collection is in the other."""
SECONDS = 30.0


@dataclass(frozen=True)
class Recording:
    """A piece as it was made (``change`` is empty) or changed."""

    seed: int
    family: int
    number: int
    change: str = ""


def fed(feature: EmbeddingFeature, samples: Samples) -> EmbeddingFeature:
    """The feature, after all of float32 ``[n]`` at 22,050 Hz."""
    framer, window = Framer(FFT_LENGTH, HOP), np.hanning(FFT_LENGTH + 1)[:-1].astype(np.float32)
    feature.process(samples, power_spectra(framer.process(samples), window))
    feature.process(samples[:0], power_spectra(framer.finish(), window))
    return feature


def computed(recordings: Iterable[Recording], compute: Callable[[Samples], NDArray]) -> list[tuple[Recording, NDArray]]:
    """``compute`` of each recording's samples, in one process a core; ``compute`` is a module's function."""
    groups: dict[tuple[int, int, int], list[Recording]] = {}
    for recording in recordings:
        groups.setdefault((recording.seed, recording.family, recording.number), []).append(recording)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(_of_piece, groups.values(), [compute] * len(groups))
        return [pair for pairs in found for pair in pairs]


def _of_piece(recordings: list[Recording], compute: Callable[[Samples], NDArray]) -> list[tuple[Recording, NDArray]]:
    first = recordings[0]
    samples = piece(first.seed, first.family, first.number, SECONDS)
    return [(each, compute(CHANGES[each.change](samples) if each.change else samples)) for each in recordings]
