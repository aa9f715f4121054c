"""A voice: a synthesizer and, if it has one, an index; loaded from files that may be hostile, and verified.

Run the first load of a stranger's file in a process with limited memory all the same: what is checked here is checked
before it is used, but the readers themselves (zip, pickle, faiss) are large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .checkpoint import MAX_BYTES, CheckpointError, Source, read
from .retrieval import Index
from .synthesizer import FEATURES, Synthesizer

ENCODERS = ("contentvec", "hubert_base", "hubert", "")  # names that files give to the one we have


@dataclass(frozen=True)
class Voice:
    """What converts: see `load`.

    Attributes:
        synthesizer: the network.
        index: for retrieval, or None.
        info: the author's remark in the file (at most 200 characters; untrusted text).
    """

    synthesizer: Synthesizer
    index: Index | None
    info: str

    @property
    def version(self) -> str:
        """``v1`` or ``v2``: which content features it takes."""
        return self.synthesizer.config.version

    @property
    def rate(self) -> int:
        """Samples a second of its audio."""
        return self.synthesizer.config.rate

    @property
    def f0(self) -> bool:
        """Whether it follows pitch."""
        return self.synthesizer.config.f0

    @property
    def speakers(self) -> int:
        """Speakers in it, counted from 0."""
        return self.synthesizer.speakers

    @property
    def samples(self) -> int:
        """Samples of a 10 ms frame."""
        return self.synthesizer.config.samples

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.synthesizer.emb_g.weight.device

    @property
    def bytes(self) -> int:
        """Memory of the weights and the index, its copy on the device included."""
        weights = sum(p.numel() * p.element_size() for p in self.synthesizer.parameters())
        return weights + (self.index.memory(self.device) if self.index else 0)

    def describe(self) -> dict[str, Any]:
        """What a listing shows of it."""
        return {
            "version": self.version,
            "rate": self.rate,
            "f0": self.f0,
            "speakers": self.speakers,
            "vectors": len(self.index) if self.index else 0,
            "bytes": self.bytes,
            "info": self.info,
        }


def load(
    weights: Source,
    index: Source | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    limit: int = MAX_BYTES,
) -> Voice:
    """A voice from its ``.pth`` and ``.index``, each a path or the file's bytes.

    Args:
        weights: the checkpoint: any RVC v1 or v2 file for inference, half or single precision.
        index: a faiss file of the same feature width.
        device, dtype: of the network.
        limit: bytes either file may have.

    Raises:
        CheckpointError: a file is refused; its ``reason`` is for programs, its text for the user.
    """
    file = read(weights, limit=limit)
    synthesizer = Synthesizer.load(file)
    # Some trainers offer others, and say so; with this one such a voice would sing nonsense.
    if file.get("embedder_model", "contentvec") not in ENCODERS:
        raise CheckpointError("OTHER_ENCODER", "the voice was trained on another content encoder than ContentVec")
    found = Index.load(index, FEATURES[synthesizer.config.version], limit) if index is not None else None
    network = synthesizer.to(device=device, dtype=dtype)
    if any(not bool(torch.isfinite(p).all()) for p in network.parameters()):
        raise CheckpointError("WRONG_VALUES", f"the weights do not fit {dtype}")
    info = file.get("info", "")
    return Voice(network, found, info[:200] if isinstance(info, str) else "")


@torch.inference_mode()
def try_out(voice: Voice, frames: int = 50) -> None:
    """Half a second of nothing in particular through ``voice``.

    Raises:
        CheckpointError: it does not yield sound samples.
        RuntimeError: there is no memory for it, see `out_of_memory`.
    """
    generator = torch.Generator().manual_seed(0)
    phone = torch.randn(1, frames, FEATURES[voice.version], generator=generator).to(voice.device)
    hz = torch.full((1, frames), 220.0, device=voice.device)
    pitch = torch.full((1, frames), 64, device=voice.device)
    one = torch.zeros(1, dtype=torch.long, device=voice.device)
    try:
        audio = voice.synthesizer.infer(phone, one + frames, pitch, hz, one).audio
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise CheckpointError("WRONG_VALUES", f"the voice cannot sing: {type(error).__name__}") from None
    if audio.shape[-1] != frames * voice.samples or not bool(torch.isfinite(audio).all()):
        raise CheckpointError("WRONG_VALUES", "the voice does not yield sound samples")


def out_of_memory(error: Exception) -> bool:
    """Whether ``error`` is Python's or, which only its text tells, PyTorch's for want of memory."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in ("allocate memory", "bad_alloc"))
