"""Another model's embeddings: anything that makes vectors of windows of samples, a network on Triton for one."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from servers.analyzer.embedding import Embeddings, pooled
from servers.analyzer.logspectrum import Samples
from servers.analyzer.signal_model import DIMENSIONS
from servers.analyzer.unknown import Unknown

_SILENT = 10 ** (-70 / 20)
_MOST_AT_ONCE = 8


class WindowModel(Protocol):
    """What can take the place of the default.

    Attributes:
        name: with its version, as "clap-htsat-1": embeddings of different names are never compared.
        sample_rate: of the windows, in Hz.
        window, hop: in samples; ``hop`` is at most ``window``.
    """

    name: str
    sample_rate: int
    window: int
    hop: int

    def embed(self, windows: Samples) -> Samples:
        """Float32 ``[n, d]``, finite and of any norm, of float32 ``[n, window]``; ``n`` is 1 to 8, ``d`` at most 512.

        Called from the thread that analyses: it may block, sets its own deadline and raises what the analysis is to
        fail with.
        """
        ...


class WindowFeature:
    """Embeds a stream by a model of windows. The result does not depend on how the stream was cut.

    The last window is filled up with zeros. Windows without a sample above -70 dBFS count as silence, unasked.

    Args:
        model: makes the vectors.
    """

    def __init__(self, model: WindowModel) -> None:
        self._model = model
        self._parts: list[Samples] = []
        self._waiting = 0
        self._samples = 0
        self._segments: list[Samples] = []

    def process(self, mono: Samples) -> None:
        """Take in float32 ``[n]`` at the model's rate.

        Raises:
            ValueError: the model made something else than it should.
        """
        self._samples += len(mono)
        self._waiting += len(mono)
        self._parts.append(mono.copy())
        batch = self._model.window + (_MOST_AT_ONCE - 1) * self._model.hop
        while self._waiting >= batch:
            data = np.concatenate(self._parts)
            self._embed(data[:batch])
            self._parts = [data[_MOST_AT_ONCE * self._model.hop :]]
            self._waiting = len(self._parts[0])

    def finish(self) -> Embeddings | Unknown:
        """The embeddings; TOO_SHORT for less than a second, SILENT where nothing is above -70 dBFS."""
        model = self._model
        if self._samples < model.sample_rate:
            return Unknown("TOO_SHORT", "The recording is shorter than a second.")
        new = self._waiting - (model.window - model.hop if self._segments else 0)
        if new > 0:
            windows = max(1, -(-(self._waiting - model.window) // model.hop) + 1)
            end = model.window + (windows - 1) * model.hop
            self._embed(np.pad(np.concatenate(self._parts), (0, end - self._waiting)))
        segments = np.array(self._segments, np.float32)
        return pooled(segments, model.window / model.sample_rate, model.hop / model.sample_rate, model.name)

    def _embed(self, samples: Samples) -> None:
        """Append a vector for each window that ``samples`` hold."""
        windows = np.lib.stride_tricks.sliding_window_view(samples, self._model.window)[:: self._model.hop]
        heard = np.abs(windows).max(axis=1) > _SILENT
        vectors = np.zeros((len(windows), DIMENSIONS), np.float32)
        if heard.any():
            made = self._model.embed(np.ascontiguousarray(windows[heard]))
            if made.ndim != 2 or len(made) != heard.sum() or made.shape[1] > DIMENSIONS or not np.isfinite(made).all():
                raise ValueError(f"{self._model.name} made {list(made.shape)} of {heard.sum()} windows, or NaN")
            norms = np.linalg.norm(made, axis=1, keepdims=True)
            vectors[heard, : made.shape[1]] = made / np.maximum(norms, 1e-12)
        self._segments.extend(vectors)
