"""Makes ``servers/analyzer/standard.npz``: mean and deviation of each statistic of the default embedding's windows.

python -m tests.bench.analysis.standardise

Over the made-up pieces of the design collection, as made and as changed: none of them, nor any of their families, is
in the collection the embedding is measured on. To be run again, and the model's version raised, whenever a statistic
changes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from servers.analyzer import signal_model
from servers.analyzer.embedding import EmbeddingFeature
from servers.analyzer.logspectrum import Samples
from tests.analyzer.changes import CHANGES
from tests.bench.analysis.corpus import DESIGN, Recording, computed, fed

_FAMILIES, _PIECES, _CHANGES = 40, 2, 3


def standardise() -> dict[str, NDArray[np.float32]]:
    """``mean`` and ``deviation``, float32 ``[512]`` each."""
    recordings = []
    for family in range(_FAMILIES):
        for number in range(_PIECES):
            chosen = np.random.default_rng([DESIGN, family, number]).permutation(list(CHANGES))[:_CHANGES]
            recordings += [Recording(DESIGN, family, number, str(change)) for change in ["", *chosen]]
    values = np.concatenate([windows for _, windows in computed(recordings, statistics)])
    deviation = values.std(axis=0) + 1e-3  # what never varies shall not count for much
    return {"mean": values.mean(axis=0).astype(np.float32), "deviation": deviation.astype(np.float32)}


def statistics(samples: Samples) -> NDArray[np.float64]:
    """Of each window, ``[windows, 512]``."""
    found = []

    def embed(power: Samples, pitch: Samples) -> Samples:
        found.append(signal_model.describe(power, pitch))
        return np.eye(1, signal_model.DIMENSIONS, dtype=np.float32)[0]

    fed(EmbeddingFeature(embed), samples).finish()
    return np.array(found)


if __name__ == "__main__":
    path = Path(signal_model.__file__).with_name(signal_model.CONSTANTS)
    constants = standardise()
    np.savez(path, mean=constants["mean"], deviation=constants["deviation"])
    print(f"{path.name}: {path.stat().st_size} bytes")
