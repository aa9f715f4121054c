"""The engine: what all voices share (content encoder, pitch estimators), and the conversion of a batch of chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.signal
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import decoder, flow, pitch
from .audio import RATE, highpass
from .chunks import DEFAULT, HOP, REST, Audio, Chunk, Converted, Geometry, Params
from .content import Encoder
from .excitation import phase_at_frames
from .live import LiveChunk
from .noise import Noise
from .pitch import Estimator
from .retrieval import protect
from .voice import Voice

# What an estimator sees of a live window, in frames: so many before and behind those whose pitch is asked for, and in
# all a multiple of what RMVPE would be padded to.
PITCH_CONTEXT, PITCH_BEHIND, PITCH_STEP = 16, 16, 32


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
        g = self.geometry
        audio = torch.from_numpy(highpass(np.stack([c.audio for c in chunks])).astype(np.float32)).to(voice.device)
        f0 = self.f0(chunks, audio) if voice.f0 else None
        window = _Window(g.before, g.core + g.fade, g.core)
        made, phases = self._synthesize(voice, chunks, window, audio, f0)
        own = np.zeros((len(chunks), g.core)) if f0 is None else f0[:, g.before : g.before + g.core]
        return [Converted(a, p, f) for a, p, f in zip(made, phases, own, strict=True)]

    @torch.inference_mode()
    def live(self, voice: Voice, chunks: Sequence[LiveChunk]) -> list[Converted]:
        """Convert windows of live streams; those of equal sizes are one batch.

        The f0 in the answers is that of all frames of the window, not smoothed: what the next window is to be given.

        Raises:
            ValueError: a window contradicts itself, or asks for a speaker or method that does not exist.
        """
        sizes = []
        for chunk in chunks:
            self._check_live(voice, chunk)
            sizes.append((chunk.frames, chunk.skip, chunk.length, chunk.advance))
        answers: dict[int, Converted] = {}
        for size in dict.fromkeys(sizes):
            rows = [i for i, other in enumerate(sizes) if other == size]
            answers |= zip(rows, self._live(voice, [chunks[i] for i in rows]), strict=True)
        return [answers[i] for i in range(len(chunks))]

    def _live(self, voice: Voice, chunks: Sequence[LiveChunk]) -> list[Converted]:
        audio = torch.from_numpy(_highpass(np.stack([c.audio for c in chunks]))).to(voice.device)
        f0 = self._live_f0(chunks, audio) if voice.f0 else None
        smooth = None
        if f0 is not None:
            smooth = np.stack([pitch.smooth(f, c.params.smoothing) for f, c in zip(f0, chunks, strict=True)])
        one = chunks[0]
        window = _Window(one.skip, one.length, one.advance)
        made, phases = self._synthesize(voice, chunks, window, audio, smooth)
        own = np.zeros((len(chunks), one.frames)) if f0 is None else f0
        return [Converted(a, p, f) for a, p, f in zip(made, phases, own, strict=True)]

    def f0(self, chunks: Sequence[Chunk], audio: Tensor) -> pitch.F0:
        """The singers' f0, (B, Geometry.frames), given or estimated; ``audio`` (B, Geometry.samples)."""
        f0 = np.zeros((len(chunks), self.geometry.frames))
        methods = [self._method(c.params) for c in chunks]
        for method in dict.fromkeys(methods):
            rows = [i for i, (c, m) in enumerate(zip(chunks, methods, strict=True)) if m == method and c.f0 is None]
            if rows:
                f0[rows] = self.estimators[method](audio[rows])[:, : self.geometry.frames]
        for i, chunk in enumerate(chunks):
            if chunk.f0 is not None:
                f0[i] = chunk.f0
            f0[i] = pitch.smooth(f0[i], chunk.params.smoothing)
        return f0

    def _live_f0(self, chunks: Sequence[LiveChunk], audio: Tensor) -> pitch.F0:
        """The singers' f0, (B, frames): what is known, and the rest estimated from the end of the window."""
        frames = chunks[0].frames
        f0: pitch.F0 = np.stack([np.full(frames, np.nan) if c.f0 is None else c.f0 for c in chunks])
        kinds = [(self._method(c.params), int(n)) for c, n in zip(chunks, np.isnan(f0).sum(1), strict=True)]
        for method, missing in dict.fromkeys(kinds):
            if missing:
                rows = [i for i, kind in enumerate(kinds) if kind == (method, missing)]
                seen = -(-(PITCH_CONTEXT + missing + PITCH_BEHIND) // PITCH_STEP) * PITCH_STEP - PITCH_BEHIND
                seen = min(seen, frames)
                heard = audio[rows, -(seen * HOP + REST) :]
                # Estimators doubt the pitch at an end of the audio (swift-f0 the last 0.1 s), and here it matters.
                mirrored = heard[:, -PITCH_BEHIND * HOP - 1 : -1].flip(1)
                found = self.estimators[method](torch.cat([heard, mirrored], dim=1))
                f0[rows, -missing:] = found[:, seen - missing : seen]
        return f0

    def _method(self, params: Params) -> str:
        return params.method or next(iter(self.estimators))

    def _check(self, voice: Voice, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            if chunk.audio.shape != (self.geometry.samples,):
                raise ValueError(f"a chunk has {self.geometry.samples} samples, not {list(chunk.audio.shape)}")
            if chunk.f0 is not None and chunk.f0.shape != (self.geometry.frames,):
                raise ValueError(f"f0 of a chunk has {self.geometry.frames} frames, not {list(chunk.f0.shape)}")
            self._check_params(voice, chunk.params, chunk.f0 is None)
        if chunks and chunks[0].phase is None:
            raise ValueError("the first chunk of a batch needs its phase")

    def _check_live(self, voice: Voice, chunk: LiveChunk) -> None:
        frames = chunk.frames
        if frames < 2 or frames % 2 or chunk.audio.shape != (frames * HOP + REST,):
            raise ValueError(
                f"a window has an even number of frames of {HOP} samples and {REST}, not {len(chunk.audio)}"
            )
        if chunk.skip < 0 or not 1 <= chunk.advance <= chunk.length <= frames - chunk.skip:
            raise ValueError(
                f"{chunk.length} frames after {chunk.skip} are not within {frames}, or end before the block"
            )
        if chunk.f0 is not None:
            if chunk.f0.shape != (frames,):
                raise ValueError(f"f0 of a window has {frames} frames, not {list(chunk.f0.shape)}")
            unknown = np.isnan(chunk.f0)
            if unknown[:-1][~unknown[1:]].any():
                raise ValueError("only the last frames' f0 can be unknown")
        self._check_params(voice, chunk.params, chunk.f0 is None or bool(np.isnan(chunk.f0[-1])))

    def _check_params(self, voice: Voice, params: Params, estimate: bool) -> None:
        if params.speaker >= voice.speakers:
            raise ValueError(f"speaker {params.speaker} does not exist: the voice has 0..{voice.speakers - 1}")
        if voice.f0 and estimate and self._method(params) not in self.estimators:
            known = ", ".join(self.estimators)
            raise ValueError(f"pitch method {params.method!r} is not available here; there are: {known}")

    def _features(self, voice: Voice, chunks: _Chunks, audio: Tensor, f0: pitch.F0 | None) -> Tensor:
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
        self, voice: Voice, chunks: _Chunks, window: _Window, audio: Tensor, f0: pitch.F0 | None
    ) -> tuple[NDArray[np.float32], list[float]]:
        """Audio of the window in each chunk, and the sine's phase where the next chunk's begins.

        Only the window goes through flow and decoder, with as many frames around it as they can see and a chunk has.

        Args:
            audio: at 16 kHz, high-passed, (B, frames * 160 + 80).
            f0: smoothed, before the key shift, (B, frames); None if the voice does not know pitch.
        """
        network, device = voice.synthesizer, voice.device
        features = self._features(voice, chunks, audio, f0)
        frames = features.shape[1]
        decoded = window.widened(decoder.REACH, frames)
        flowed = window.widened(decoder.REACH + flow.REACH, frames)
        lead = window.skip - decoded.start  # frames that are decoded before those wanted
        bins = hertz = None
        if f0 is not None:
            sung = np.stack([pitch.shift(f, c.params.key) for f, c in zip(f0, chunks, strict=True)])
            bins, hertz = pitch.tensors(sung, device)
        speaker = network.speaker(torch.tensor([c.params.speaker for c in chunks], device=device))
        mask = torch.ones(len(chunks), 1, frames, dtype=network.dtype, device=device)
        mean, log_scale = network.enc_p(features.to(network.dtype), bins, mask)
        starts = [c.first - window.skip for c in chunks]  # frame 0 of each chunk in its stream
        noise = _noise(chunks, starts, flowed, 0, network.config.latent, device).transpose(1, 2).to(mean)
        prior = network.sample(mean[..., flowed], log_scale[..., flowed], noise)
        latent = network.flow.inverse(prior, mask[..., flowed], speaker)
        latent = latent[..., decoded.start - flowed.start : decoded.stop - flowed.start]
        har = None
        phases = [c.phase or 0.0 for c in chunks]
        if network.dec.m_source is not None and hertz is not None:
            turns = phase_at_frames(hertz[:, decoded], voice.rate, voice.samples)
            begins, phases = _chain(chunks, turns[:, lead], turns[:, lead + window.advance])
            source = _noise(chunks, starts, decoded, 1, voice.samples, device).flatten(1)
            har = network.dec.m_source(hertz[:, decoded], source, begins)
        sound = network.dec(latent, speaker, har, lead, window.length)[:, 0].float()
        return sound.cpu().numpy(), phases


_Chunks = Sequence[Chunk | LiveChunk]


@dataclass(frozen=True)
class _Window:
    """The frames of a chunk that are wanted: ``length`` after ``skip``; the next chunk's begin ``advance`` later."""

    skip: int
    length: int
    advance: int

    def widened(self, by: int, frames: int) -> slice:
        """The window and ``by`` frames around it, of ``frames``."""
        return slice(max(self.skip - by, 0), min(self.skip + self.length + by, frames))


def _highpass(audio: Audio) -> Audio:
    """As `audio.highpass`, forward only: the newest samples of a live window have nothing behind them."""
    sections = scipy.signal.butter(5, 48, btype="high", fs=RATE, output="sos")
    filtered: Audio = scipy.signal.sosfilt(sections, audio.astype(np.float64)).astype(np.float32)
    return filtered


def _noise(
    chunks: _Chunks, starts: Sequence[int], frames: slice, kind: int, width: int, device: torch.device
) -> Tensor:
    """Noise of these frames of each chunk, (B, frames, width)."""
    count = frames.stop - frames.start
    drawn = [
        Noise(c.params.seed, kind, width).frames(start + frames.start, count)
        for c, start in zip(chunks, starts, strict=True)
    ]
    return torch.from_numpy(np.stack(drawn)).to(device)


def _chain(chunks: _Chunks, at_first: Tensor, at_next: Tensor) -> tuple[Tensor, list[float]]:
    """Phases with which to begin decoding, (B,), and those where the next chunks begin.

    Args:
        chunks: with the phase that each has at its first wanted frame, or None to go on where the one before ends.
        at_first, at_next: how far the sine turns from the first decoded frame to these places, in cycles, (B,).
    """
    begins, ends = [], []
    now = 0.0
    for chunk, first, end in zip(chunks, at_first.tolist(), at_next.tolist(), strict=True):
        now = now if chunk.phase is None else chunk.phase
        begins.append((now - first) % 1.0)
        now = (now - first + end) % 1.0
        ends.append(now)
    return torch.tensor(begins, dtype=torch.float64, device=at_first.device), ends
