"""The engine: what all voices share (content encoder, pitch estimators), and the conversion of a batch of chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import decoder, flow, pitch
from .audio import highpass
from .chunks import DEFAULT, Chunk, Converted, Geometry
from .content import Encoder
from .excitation import phase_at_frames
from .noise import Noise
from .pitch import Estimator
from .retrieval import protect
from .voice import Voice


@dataclass(frozen=True)
class Engine:
    """Converts chunks in aligned mode: frame k of a chunk's audio is frame k of the result.

    Attributes:
        encoder: of content.
        estimators: of pitch, by method, the preferred one first.
        geometry: of all chunks.
    """

    encoder: Encoder
    estimators: Mapping[str, Estimator]
    geometry: Geometry = DEFAULT

    @torch.inference_mode()
    def convert(self, voice: Voice, chunks: Sequence[Chunk]) -> list[Converted]:
        """Convert a batch.

        A batch may mix streams and parameters. Consecutive chunks of one stream can be in one batch if all but the
        first have ``phase=None``.

        Raises:
            ValueError: a chunk is of another length, or asks for a speaker or method that does not exist.
        """
        self._check(voice, chunks)
        audio = torch.from_numpy(highpass(np.stack([c.audio for c in chunks])).astype(np.float32)).to(voice.device)
        f0 = self.f0(chunks, audio) if voice.f0 else None
        features = self._features(voice, chunks, audio, f0)
        return self._synthesize(voice, chunks, features, f0)

    def f0(self, chunks: Sequence[Chunk], audio: Tensor) -> pitch.F0:
        """The singers' f0, (B, Geometry.frames), given or estimated; ``audio`` (B, Geometry.samples)."""
        f0 = np.zeros((len(chunks), self.geometry.frames))
        methods = [self._method(c) for c in chunks]
        for method in dict.fromkeys(methods):
            rows = [i for i, (c, m) in enumerate(zip(chunks, methods, strict=True)) if m == method and c.f0 is None]
            if rows:
                f0[rows] = self.estimators[method](audio[rows])[:, : self.geometry.frames]
        for i, chunk in enumerate(chunks):
            if chunk.f0 is not None:
                f0[i] = chunk.f0
            f0[i] = pitch.smooth(f0[i], chunk.params.smoothing)
        return f0

    def _method(self, chunk: Chunk) -> str:
        return chunk.params.method or next(iter(self.estimators))

    def _check(self, voice: Voice, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            if chunk.audio.shape != (self.geometry.samples,):
                raise ValueError(f"a chunk has {self.geometry.samples} samples, not {list(chunk.audio.shape)}")
            if chunk.f0 is not None and chunk.f0.shape != (self.geometry.frames,):
                raise ValueError(f"f0 of a chunk has {self.geometry.frames} frames, not {list(chunk.f0.shape)}")
            if chunk.params.speaker >= voice.speakers:
                text = f"speaker {chunk.params.speaker} does not exist: the voice has 0..{voice.speakers - 1}"
                raise ValueError(text)
            if voice.f0 and chunk.f0 is None and self._method(chunk) not in self.estimators:
                known = ", ".join(self.estimators)
                raise ValueError(f"pitch method {chunk.params.method!r} is not available here; there are: {known}")
        if chunks and chunks[0].phase is None:
            raise ValueError("the first chunk of a batch needs its phase")

    def _features(self, voice: Voice, chunks: Sequence[Chunk], audio: Tensor, f0: pitch.F0 | None) -> Tensor:
        """Content after retrieval and protection, (B, frames, width)."""
        before = self.encoder(audio, voice.version)
        after = before
        if voice.index is not None and any(c.params.index_rate > 0 for c in chunks):
            index = voice.index
            after = torch.stack(
                [
                    index.blend(x, c.params.index_rate, c.params.exact) if c.params.index_rate > 0 else x
                    for x, c in zip(before, chunks, strict=True)
                ]
            )
        before, after = (x.repeat_interleave(2, dim=1) for x in (before, after))
        if f0 is None:
            return after
        hertz = torch.from_numpy(f0).to(after.device)
        pairs = zip(after, before, hertz, chunks, strict=True)
        return torch.cat([protect(a[None], b[None], h[None], c.params.protect) for a, b, h, c in pairs])

    def _synthesize(
        self, voice: Voice, chunks: Sequence[Chunk], features: Tensor, f0: pitch.F0 | None
    ) -> list[Converted]:
        """Only what a chunk yields goes through flow and decoder, with as many frames around it as they can see."""
        g, network, device = self.geometry, voice.synthesizer, voice.device
        yielded = slice(g.before, g.before + g.core + g.fade)
        decoded = slice(yielded.start - decoder.REACH, yielded.stop + decoder.REACH)
        flowed = slice(decoded.start - flow.REACH, decoded.stop + flow.REACH)
        starts = [c.first - g.before for c in chunks]  # frame 0 of each chunk in its stream
        sung = bins = hertz = None
        if f0 is not None:
            sung = np.stack([pitch.shift(f, c.params.key) for f, c in zip(f0, chunks, strict=True)])
            bins, hertz = pitch.tensors(sung, device)
        speaker = network.speaker(torch.tensor([c.params.speaker for c in chunks], device=device))
        mask = torch.ones(len(chunks), 1, g.frames, dtype=network.dtype, device=device)
        mean, log_scale = network.enc_p(features.to(network.dtype), bins, mask)
        noise = _noise(chunks, starts, flowed, 0, network.config.latent, device).transpose(1, 2).to(mean)
        prior = network.sample(mean[..., flowed], log_scale[..., flowed], noise)
        latent = network.flow.inverse(prior, mask[..., flowed], speaker)[..., flow.REACH : -flow.REACH]
        har = None
        phases = [0.0] * len(chunks)
        if network.dec.m_source is not None and hertz is not None:
            turns = phase_at_frames(hertz[:, decoded], voice.rate, voice.samples)
            begins, phases = _chain(chunks, turns[:, decoder.REACH], turns[:, decoder.REACH + g.core])
            source = _noise(chunks, starts, decoded, 1, voice.samples, device).flatten(1)
            har = network.dec.m_source(hertz[:, decoded], source, begins)
        sound = network.dec(latent, speaker, har)[:, 0].float()
        edge = decoder.REACH * voice.samples
        audio: NDArray[np.float32] = sound[:, edge:-edge].cpu().numpy()
        own = np.zeros((len(chunks), g.core)) if f0 is None else f0[:, g.before : g.before + g.core]
        return [Converted(a, p, f) for a, p, f in zip(audio, phases, own, strict=True)]


def _noise(
    chunks: Sequence[Chunk], starts: Sequence[int], frames: slice, kind: int, width: int, device: torch.device
) -> Tensor:
    """Noise of these frames of each chunk, (B, frames, width)."""
    count = frames.stop - frames.start
    drawn = [
        Noise(c.params.seed, kind, width).frames(start + frames.start, count)
        for c, start in zip(chunks, starts, strict=True)
    ]
    return torch.from_numpy(np.stack(drawn)).to(device)


def _chain(chunks: Sequence[Chunk], at_core: Tensor, at_end: Tensor) -> tuple[Tensor, list[float]]:
    """Phases with which to begin decoding, (B,), and those at the ends of the cores.

    Args:
        chunks: with the phase that each has at its core, or None to go on where the one before ends.
        at_core, at_end: how far the sine turns from the first decoded frame to core and end, in cycles, (B,).
    """
    begins, ends = [], []
    phase = 0.0
    for chunk, core, end in zip(chunks, at_core.tolist(), at_end.tolist(), strict=True):
        phase = phase if chunk.phase is None else chunk.phase
        begins.append((phase - core) % 1.0)
        phase = (phase - core + end) % 1.0
        ends.append(phase)
    return torch.tensor(begins, dtype=torch.float64, device=at_core.device), ends
