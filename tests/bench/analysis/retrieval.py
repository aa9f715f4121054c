"""Does the embedding find a recording again after what happens to recordings, among others much like it?

python -m tests.bench.analysis.retrieval
"""

from __future__ import annotations

from dataclasses import dataclass

import librosa
import numpy as np
from numpy.typing import NDArray

from servers.analyzer.embedding import EmbeddingFeature, Embeddings
from servers.analyzer.logspectrum import RATE, Samples
from tests.analyzer.changes import CHANGES
from tests.bench.analysis.corpus import HELD_OUT, Recording, computed, fed

_MODELS = ("ours", "MFCC")


@dataclass(frozen=True)
class Row:
    """How often the right recording was the nearest (``first``) or among the five nearest, by model, in 0 to 1.

    The row "family" is the mean average precision of finding the other pieces of a family, as ``first``.
    """

    change: str
    queries: int
    first: dict[str, float]
    five: dict[str, float]


def table(families: int = 40, pieces: int = 10, asked: int = 40) -> list[Row]:
    """Cosine search in ``families * pieces`` held-out recordings for changed copies of one of ``asked`` families each.

    The baseline is the mean and standard deviation of 20 MFCCs of librosa, each standardised over the collection.
    """
    originals = [Recording(HELD_OUT, family, number) for family in range(families) for number in range(pieces)]
    changed = [Recording(HELD_OUT, family, 0, change) for family in range(asked) for change in CHANGES]
    found = computed([*originals, *changed], vectors)
    return rows([recording for recording, _ in found], np.array([both for _, both in found]))


def vectors(samples: Samples) -> NDArray:
    """Ours and the baseline's, one after the other, ``[512 + 40]``."""
    ours = fed(EmbeddingFeature(), samples).finish()
    assert isinstance(ours, Embeddings)
    mfcc = librosa.feature.mfcc(y=samples, sr=RATE, n_mfcc=20)
    return np.concatenate([ours.track, mfcc.mean(axis=1), mfcc.std(axis=1)])


def rows(recordings: list[Recording], both: NDArray) -> list[Row]:
    """The table of recordings and their ``vectors``, ``[recordings, 552]``."""
    kept = np.array([not each.change for each in recordings])
    mfcc = both[:, 512:]
    mfcc = (mfcc - mfcc[kept].mean(axis=0)) / mfcc[kept].std(axis=0)
    models = dict(zip(_MODELS, (both[:, :512], mfcc / np.linalg.norm(mfcc, axis=1, keepdims=True)), strict=True))
    names = np.array([(each.family, each.number) for each in recordings])
    result = []
    for change in sorted({each.change for each in recordings} - {""}, key=list(CHANGES).index):
        asked = np.array([each.change == change for each in recordings])
        right = {name: _ranks(model[asked], names[asked], model[kept], names[kept]) for name, model in models.items()}
        first = {name: float(np.mean(ranks == 0)) for name, ranks in right.items()}
        five = {name: float(np.mean(ranks < 5)) for name, ranks in right.items()}
        result.append(Row(change, int(asked.sum()), first, five))
    families = {name: _precision(model[kept], names[kept, 0]) for name, model in models.items()}
    return [*result, Row("family", int(kept.sum()), families, {})]


def _ranks(asked: NDArray, wanted: NDArray, collection: NDArray, names: NDArray) -> NDArray:
    """How many of the collection are nearer than the one wanted, by question."""
    similar = asked @ collection.T
    right = (names[None] == wanted[:, None]).all(axis=2)
    return (similar > similar[right][:, None]).sum(axis=1)


def _precision(collection: NDArray, families: NDArray) -> float:
    """Mean average precision of the others of each one's family."""
    similar = collection @ collection.T
    np.fill_diagonal(similar, -2)
    order = np.argsort(-similar, axis=1)[:, :-1]
    relevant = families[order] == families[:, None]
    hits = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
    return float(np.mean((hits * relevant).sum(axis=1) / relevant.sum(axis=1)))


if __name__ == "__main__":
    print(f"{'':16}{'n':>5}" + "".join(f"{name + ' 1':>9}{name + ' 5':>9}" for name in _MODELS))
    for row in table():
        cells = "".join(f"{row.first[name]:9.3f}{row.five.get(name, float('nan')):9.3f}" for name in _MODELS)
        print(f"{row.change:16}{row.queries:5}{cells}")
