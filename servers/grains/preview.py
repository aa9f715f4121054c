"""A few seconds that let a grain library be heard."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from servers.grains.library import Library

Samples = NDArray[np.float32]

PREVIEW_SECONDS = 10.0
GAP_SECONDS = 0.05
_GRAIN_SECONDS = 1.0
_FADE_SECONDS = 0.005


def preview(library: Library) -> Samples:
    """Grains from all over a library, in order, each from its onset, with 50 ms between them.

    Returns:
        float32 ``[channels, frames]``, at the library's rate, at most 10 s, within ±1. Where not all fit, grains are
        cut after a second, and of more than fit then, some are heard that are spread evenly over the library.
    """
    rate = library.sample_rate
    gap, limit = round(GAP_SECONDS * rate), int(PREVIEW_SECONDS * rate)
    begins = library.offsets + library.onsets
    longest = max(round(_GRAIN_SECONDS * rate), limit // len(library) - gap)
    lengths = np.minimum(library.lengths - library.onsets, longest)
    chosen = np.arange(len(library))
    while (lengths[chosen] + gap).sum() - gap > limit:
        fewer = max(1, int(0.9 * min(len(chosen), limit // gap)))
        chosen = np.linspace(0, len(library) - 1, fewer).round().astype(np.int64)
    silence = np.zeros((library.channels, gap), np.float32)
    parts = []
    for begin, length in zip(begins[chosen].tolist(), lengths[chosen].tolist(), strict=True):
        parts += [_faded(library.audio[:, begin : begin + length], rate), silence]
    whole = np.concatenate(parts[:-1], axis=1)
    quieter: Samples = whole / np.float32(max(1.0, np.abs(whole).max()))
    return quieter


def _faded(grain: Samples, rate: int) -> Samples:
    count = min(grain.shape[1], round(_FADE_SECONDS * rate))
    faded = grain.copy()
    faded[:, grain.shape[1] - count :] *= 1 - np.arange(1, count + 1, dtype=np.float32) / np.float32(count)
    return faded
