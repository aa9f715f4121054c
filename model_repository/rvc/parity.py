"""Parity mode: a whole recording, exactly as RVC's classic offline pipeline converts it, its defects included.

For comparisons; `stream` is what serves. Known defects: the result is up to 20 ms shorter or 10 ms longer than the
input, later audio slides earlier at segment joins, the sine restarts there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from . import pitch
from .audio import RATE, Audio, highpass
from .content import Encoder
from .pitch import HOP, Estimator
from .retrieval import protect
from .voice import Voice

Noise = tuple[NDArray[np.float32], NDArray[np.float32] | None]


@dataclass(frozen=True)
class Settings:
    """How a recording is converted.

    key: semitones. index_rate: 0..1, of retrieval. protect: 0..0.5, how much of retrieval unvoiced frames get (0.5 and
    more: all). rms_mix_rate: 0 (loudness of the input) .. 1 (of the voice). speaker: of the voice.
    resample_rate: of the result if at least 16000, else the voice's.
    pad, query, center, longest: seconds, of the segmentation; defaults are those of full precision.
    """

    key: float = 0.0
    index_rate: float = 0.75
    protect: float = 0.33
    rms_mix_rate: float = 0.25
    speaker: int = 0
    resample_rate: int = 0
    pad: int = 1
    query: int = 6
    center: int = 38
    longest: int = 41


@dataclass
class Segment:
    """What the synthesizer was given and made of one segment."""

    phone: Audio
    pitch: NDArray[np.int64] | None
    pitchf: Audio | None
    audio: Audio


@dataclass
class Result:
    """A converted recording and what led to it.

    out: int16, at ``rate``. Stages, in order: highpassed (float64, 16 kHz), f0, f0_coarse (of the padded signal), cuts
    (samples), encoder_samples, segments, joined, after_rms, after_resample.
    """

    out: NDArray[np.int16]
    rate: int
    highpassed: NDArray[np.float64]
    f0: NDArray[np.float64] | None
    f0_coarse: NDArray[np.int64] | None
    cuts: list[int]
    joined: Audio
    after_rms: Audio
    after_resample: Audio
    encoder_samples: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)


def find_cuts(audio: NDArray[np.float64], settings: Settings) -> list[int]:
    """Where to cut ``audio`` (16 kHz): the quietest place around each multiple of ``center``; none if it is short."""
    if len(audio) + HOP <= settings.longest * RATE:
        return []
    padded = np.abs(np.pad(audio, HOP // 2, mode="reflect"))
    loudness = np.zeros(len(audio))
    for i in range(HOP):  # in this order the sums round as the reference's do
        loudness += padded[i : i + len(audio)]
    cuts = []
    for centre in range(settings.center * RATE, len(audio), settings.center * RATE):
        start = centre - settings.query * RATE
        around = loudness[start : centre + settings.query * RATE]
        cuts.append((start + int(around.argmin())) // HOP * HOP)
    return cuts


@torch.inference_mode()
def convert(
    audio: Audio,
    voice: Voice,
    encoder: Encoder,
    estimator: Estimator,
    settings: Settings = Settings(),
    noise: Sequence[Noise] | None = None,
) -> Result:
    """Convert a whole recording; memory grows with its length.

    Args:
        audio: mono 16 kHz (n,), already through `audio.limit_peak`; longer than ``pad`` seconds.
        voice, encoder, estimator: the models, all on one device.
        settings: see there.
        noise: of each segment, for `Synthesizer.infer`: ``noise_z`` and ``noise_source``; drawn if None.

    Raises:
        ValueError: the recording is too short to be padded by reflection.
    """
    if len(audio) <= settings.pad * RATE:
        raise ValueError(f"parity mode needs more than {settings.pad} s of audio")
    clean = highpass(audio)
    cuts = find_cuts(clean, settings)
    pad = settings.pad * RATE
    padded = np.pad(clean, pad, mode="reflect")
    f0 = bins = None
    if voice.f0:
        f0 = pitch.shift(estimator(torch.from_numpy(padded).float()[None].to(voice.device))[0], settings.key)
        bins = pitch.coarse(f0)
    empty = np.zeros(0, np.float32)
    result = Result(np.zeros(0, np.int16), voice.rate, clean, f0, bins, cuts, empty, empty, empty)
    trim = settings.pad * voice.rate
    for i, start in enumerate([0, *cuts]):
        stop = cuts[i] + 2 * pad if i < len(cuts) else None
        chunk = padded[start : None if stop is None else stop + HOP]
        frames = slice(start // HOP, len(padded) // HOP if stop is None else stop // HOP)
        track = None if f0 is None else f0[frames]
        segment = _segment(chunk, track, voice, encoder, settings, noise[i] if noise else None)
        result.encoder_samples.append(len(chunk))
        result.segments.append(segment)
    result.joined = np.concatenate([s.audio[trim:-trim] for s in result.segments])
    result.after_rms = _match_loudness(clean, result.joined, voice.rate, settings.rms_mix_rate)
    result.after_resample = result.after_rms
    if settings.resample_rate >= RATE and settings.resample_rate != voice.rate:
        result.rate = settings.resample_rate
        result.after_resample = _resample(result.after_rms, voice.rate, result.rate)
    peak = float(np.abs(result.after_resample).max(initial=0)) / 0.99
    result.out = (result.after_resample * np.float32(32768 / max(peak, 1.0))).astype(np.int16)
    return result


def _segment(
    chunk: NDArray[np.float64],
    f0: NDArray[np.float64] | None,
    voice: Voice,
    encoder: Encoder,
    settings: Settings,
    noise: Noise | None,
) -> Segment:
    device = voice.device
    features = encoder(torch.from_numpy(chunk).float()[None].to(device), voice.version)
    before = features
    if voice.index is not None and settings.index_rate != 0:
        features = voice.index.blend(features, settings.index_rate)
    features, before = (x.repeat_interleave(2, dim=1) for x in (features, before))
    frames = min(len(chunk) // HOP, features.shape[1])
    features, before = features[:, :frames], before[:, :frames]
    bins = hertz = None
    if f0 is not None:
        bins, hertz = pitch.tensors(f0[None, :frames], device)
        features = protect(features, before, hertz, settings.protect)
    z, source = (None, None) if noise is None else noise
    stages = voice.synthesizer.infer(
        features,
        torch.tensor([frames], device=device),
        bins,
        hertz,
        torch.tensor([settings.speaker], device=device),
        noise_z=None if z is None else torch.from_numpy(z).to(device),
        noise_source=None if source is None else torch.from_numpy(source).to(device),
    )
    return Segment(
        features.cpu().numpy(),
        None if bins is None else bins.cpu().numpy(),
        None if hertz is None else hertz.cpu().numpy(),
        stages.audio[0, 0].float().cpu().numpy(),
    )


def _rms(audio: NDArray[np.floating[Any]], rate: int) -> torch.Tensor:
    """RMS of a second of audio around every half second, (1, 1, frames)."""
    hop, window = rate // 2, rate // 2 * 2
    padded = np.pad(audio.astype(np.float64), window // 2)
    energy = np.concatenate([[0.0], np.cumsum(padded**2)])
    starts = np.arange(0, len(padded) - window + 1, hop)
    rms = np.sqrt(np.maximum(energy[starts + window] - energy[starts], 0) / window)
    return torch.from_numpy(rms.astype(np.float32))[None, None]


def _match_loudness(given: NDArray[np.float64], made: Audio, rate: int, mix: float) -> Audio:
    """``made`` with the loudness of ``given`` (16 kHz), as far as ``mix`` is below 1."""
    if mix == 1:
        return made
    wanted, own = (
        F.interpolate(_rms(audio, r), size=len(made), mode="linear")[0, 0].numpy()
        for audio, r in ((given, RATE), (made, rate))
    )
    own = np.maximum(own, np.float32(1e-6))
    matched: Audio = made * wanted ** np.float32(1 - mix) * own ** np.float32(mix - 1)
    return matched


def _resample(audio: Audio, given: int, wanted: int) -> Audio:
    """``audio`` at another rate; ceil(n * wanted / given) samples, as librosa gives them."""
    count = -(-len(audio) * wanted // given)
    resampled = soxr.resample(audio, given, wanted, quality="HQ")[:count]
    padded: Audio = np.pad(resampled, (0, count - len(resampled))).astype(np.float32)
    return padded
