"""rvc for Triton's Python backend: see config.pbtxt, settings.py and serving.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

# The stub ignores PYTHONPATH: this folder holds the model's modules, the repository's the `rvc` package.
_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from base import Model, Parts  # noqa: E402
from rvc.audio import highpass  # noqa: E402
from rvc.chunks import Audio, Chunk, Converted, Geometry  # noqa: E402
from rvc.content import ContentEncoder  # noqa: E402
from rvc.engine import Engine  # noqa: E402
from rvc.live import LiveChunk  # noqa: E402
from rvc.pitch import F0, Estimator, SwiftF0  # noqa: E402
from rvc.pyin import Pyin  # noqa: E402
from rvc.rmvpe import Rmvpe  # noqa: E402
from rvc.voice import Voice, load  # noqa: E402
from settings import Settings  # noqa: E402


class TritonPythonModel(Model):
    """What the backend loads."""

    def build(self, settings: Settings) -> Parts:
        """The networks."""
        s = settings
        if s.threads:
            torch.set_num_threads(s.threads)
        dtype = getattr(torch, s.dtype)
        estimators: dict[str, Estimator] = {}
        if rmvpe := s.rmvpe_file():
            estimators["rmvpe"] = Rmvpe.load(rmvpe).to(s.device)
        estimators |= {"swift-f0": SwiftF0(), "pyin": Pyin()}
        encoder = ContentEncoder.load(s.content_file()).to(device=s.device, dtype=dtype)
        engine = Engine(encoder, estimators, Geometry(s.core, s.before, s.after, s.fade))
        return Parts(_Work(engine, s.device), lambda *files: load(*files, device=s.device, dtype=dtype))


class _Work:
    """See `serving.Work`."""

    def __init__(self, engine: Engine, device: str) -> None:
        self._engine, self._device = engine, device
        self.methods = tuple(engine.estimators)

    def convert(self, voice: Voice, chunks: Sequence[Chunk]) -> list[Converted]:
        return self._engine.convert(voice, chunks)

    def live(self, voice: Voice, chunks: Sequence[LiveChunk]) -> list[Converted]:
        return self._engine.live(voice, chunks)

    def pitch(self, audio: Audio, method: str) -> F0:
        heard = torch.from_numpy(highpass(audio[None]).astype(np.float32)).to(self._device)
        return self._engine.estimators[method](heard)[0]
