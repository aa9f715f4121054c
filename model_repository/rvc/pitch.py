"""Pitch: estimators, and what happens to f0 before the synthesizer sees it.

f0 is in Hz with 0 where unvoiced; frame k is at sample 160 k of 16 kHz audio.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RATE = 16_000
HOP = 160
LOWEST, HIGHEST = 50.0, 1100.0  # Hz: the range of coarse pitch
METHODS = ("rmvpe", "swift-f0", "pyin")

F0 = NDArray[np.float64]


class Estimator(Protocol):
    """What the pipelines need of a pitch estimator."""

    def __call__(self, audio: Tensor) -> F0:
        """f0 (B, n // 160 + 1) of 16 kHz audio (B, n)."""
        ...


class SwiftF0:
    """swift-f0 (MIT), whose weights come with its package.

    Args:
        threads: of one estimate.
    """

    def __init__(self, threads: int = 1) -> None:
        import swift_f0

        self._period = swift_f0.FRAME_PERIOD
        # Threads that spin between calls would take the cores of the synthesizer.
        self._detector: Any = swift_f0.SwiftF0(threads=threads, spin=False)

    def __call__(self, audio: Tensor) -> F0:
        """See `Estimator`."""
        return np.stack([self._one(item) for item in audio.float().cpu().numpy()])

    def _one(self, audio: NDArray[np.float32]) -> F0:
        found = self._detector.detect(audio, RATE, fmin=LOWEST, fmax=HIGHEST)
        times = np.arange(len(audio) // HOP + 1) * (HOP / RATE)
        voiced = found.confidence >= 0.5
        # Its frames are 16 ms apart, ours 10: voicing is the nearest frame's, pitch is interpolated in cents between
        # voiced frames only.
        nearest = np.clip(np.rint(times / self._period).astype(int), 0, len(voiced) - 1)
        if not voiced.any():
            return np.zeros(len(times))
        log_f0 = np.interp(times, found.timestamps[voiced], np.log(found.pitch_hz[voiced]))
        return np.where(voiced[nearest], np.exp(log_f0), 0.0)


def shift(f0: F0, semitones: float) -> F0:
    """``f0`` so many semitones higher."""
    return f0 * 2 ** (semitones / 12)


def coarse(f0: F0) -> NDArray[np.int64]:
    """Pitch as the synthesizer's table knows it: 1..255, even steps in mel; 1 where unvoiced or below 50 Hz."""
    low, high = _mel(np.array([LOWEST, HIGHEST]))
    mel = _mel(f0)
    bins = np.where(mel > 0, (mel - low) * 254 / (high - low) + 1, 0)
    pitch: NDArray[np.int64] = np.rint(np.clip(bins, 1, 255)).astype(np.int64)
    return pitch


def _mel(f0: F0) -> F0:
    mel: F0 = 1127 * np.log(1 + f0 / 700)
    return mel


def smooth(f0: F0, frames: int) -> F0:
    """Median over ``frames`` (odd) frames, of the voiced among them; which frames are voiced does not change.

    It removes octave jumps of a few frames and leaves slides and vibrato (50 ms and slower) alone.

    Args:
        f0: (..., T).
        frames: 1 leaves everything as it is.

    Raises:
        ValueError: ``frames`` is even or not positive.
    """
    if frames < 1 or frames % 2 == 0:
        raise ValueError(f"smoothing is over an odd number of frames, not {frames}")
    if frames == 1 or f0.shape[-1] == 0:
        return f0
    known = np.where(f0 > 0, f0, np.nan)
    half = frames // 2
    padded = np.pad(known, [(0, 0)] * (f0.ndim - 1) + [(half, half)], constant_values=np.nan)
    around = np.sort(np.lib.stride_tricks.sliding_window_view(padded, frames, axis=-1), axis=-1)  # NaN last
    voiced = np.maximum((~np.isnan(around)).sum(-1), 1)
    middle = np.take_along_axis(around, ((voiced - 1) // 2)[..., None], -1)[..., 0]
    return np.where(f0 > 0, middle, 0.0)


def tensors(f0: F0, device: torch.device) -> tuple[Tensor, Tensor]:
    """Coarse pitch (int64) and pitch in Hz (float32), as the synthesizer takes them, of ``f0`` (B, T)."""
    return torch.from_numpy(coarse(f0)).to(device), torch.from_numpy(f0.astype(np.float32)).to(device)
