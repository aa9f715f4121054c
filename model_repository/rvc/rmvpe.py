"""RMVPE: pitch of a voice, also in a mix. Source: arXiv 2306.15412. Names are those of its checkpoint.

A mel spectrogram is treated as a picture: a U-net, then a recurrent layer over time, gives a salience of 360 pitches
20 cents apart for every 10 ms.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import CheckpointError, check_tensors, fill, read, without_weights

RATE = 16_000
HOP = 160
WINDOW = 1024
MELS = 128
BINS = 360
FIRST_CENTS = 1997.3794084376191  # of bin 0, above 10 Hz
UNVOICED = 0.03  # a salience below which there is no pitch


@cache
def _mel_filters() -> NDArray[np.float32]:
    """Triangles on the HTK mel scale, 30 to 8000 Hz, each of unit area: (128, 513)."""
    edges_mel = np.linspace(2595 * np.log10(1 + 30 / 700), 2595 * np.log10(1 + 8000 / 700), MELS + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)
    frequencies = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    low, centre, high = (e[:, None] for e in (edges[:-2], edges[1:-1], edges[2:]))
    triangles = np.minimum((frequencies - low) / (centre - low), (high - frequencies) / (high - centre))
    filters: NDArray[np.float32] = (np.maximum(triangles, 0) * 2 / (high - low)).astype(np.float32)
    return filters


def log_mel(audio: Tensor) -> Tensor:
    """Log-mel spectrogram (B, 128, n // 160 + 1) of 16 kHz audio (B, n), n > 512; float32."""
    window = torch.hann_window(WINDOW, device=audio.device)
    spectrum = torch.stft(audio.float(), WINDOW, HOP, window=window, center=True, return_complex=True)
    filters = torch.from_numpy(_mel_filters()).to(audio.device)
    return (filters @ spectrum.abs()).clamp_min(1e-5).log()


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(given, made, 3, padding=1, bias=False),
            nn.BatchNorm2d(made),
            nn.ReLU(),
            nn.Conv2d(made, made, 3, padding=1, bias=False),
            nn.BatchNorm2d(made),
            nn.ReLU(),
        )
        if given != made:
            self.shortcut = nn.Conv2d(given, made, 1)

    def forward(self, x: Tensor) -> Tensor:
        around: Tensor = self.shortcut(x) if hasattr(self, "shortcut") else x
        out: Tensor = self.conv(x) + around
        return out


def _blocks(given: int, made: int) -> nn.ModuleList:
    return nn.ModuleList([Block(given, made), *(Block(made, made) for _ in range(3))])


class Level(nn.Module):
    """Four blocks on the way down, or at the bottom."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.conv = _blocks(given, made)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.conv:
            x = block(x)
        return x


class UpLevel(nn.Module):
    """Twice the size, joined with what was there on the way down, and four blocks."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.ConvTranspose2d(given, made, 3, stride=2, padding=1, output_padding=1, bias=False),
            nn.BatchNorm2d(made),
            nn.ReLU(),
        )
        self.conv2 = _blocks(2 * made, made)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = torch.cat([self.conv1(x), skip], dim=1)
        for block in self.conv2:
            x = block(x)
        return x


class Down(nn.Module):
    """The levels of the way down, and the normalisation of the input."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(1)
        self.layers = nn.ModuleList(Level(a, b) for a, b in zip([1, *channels], channels, strict=False))


class Levels(nn.Module):
    """A list of levels under the name `layers`."""

    def __init__(self, levels: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(levels)


class UNet(nn.Module):
    """(B, 1, frames, 128) to (B, 16, frames, 128); frames a multiple of 32."""

    def __init__(self) -> None:
        super().__init__()
        down = [16, 32, 64, 128, 256]
        self.encoder = Down(down)
        self.intermediate = Levels([Level(256, 512), *(Level(512, 512) for _ in range(3))])
        up = [512, *reversed(down)]
        self.decoder = Levels([UpLevel(a, b) for a, b in pairwise(up)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder.bn(x)
        skips = []
        for level in self.encoder.layers:
            x = level(x)
            skips.append(x)
            x = F.avg_pool2d(x, 2)
        for level in self.intermediate.layers:
            x = level(x)
        for level, skip in zip(self.decoder.layers, reversed(skips), strict=True):
            x = level(x, skip)
        return x


class Recurrent(nn.Module):
    """A recurrent layer over time, in both directions: (B, frames, 384) to (B, frames, 512)."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3 * MELS, 256, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gru(x)[0]
        return out


class Rmvpe(nn.Module):
    """The estimator; make it with `Rmvpe.load`. Call it as any `pitch.Estimator`."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet()
        self.cnn = nn.Conv2d(16, 3, 3, padding=1)
        self.fc = nn.Sequential(Recurrent(), nn.Linear(512, BINS))

    @classmethod
    def load(cls, source: Path) -> Rmvpe:
        """From ``rmvpe.pt``, a state dict of any float type; the network is float32.

        Raises:
            CheckpointError: it is another file.
        """
        weights = read(source)
        if not isinstance(weights, dict):
            raise CheckpointError("WRONG_FORMAT", "not RMVPE weights: the file holds no state dict")
        check_tensors(weights)
        with without_weights():
            model = cls()
        fill(model, weights)
        return model

    @torch.inference_mode()
    def salience(self, mel: Tensor) -> Tensor:
        """Salience 0..1 of each pitch, (B, frames, 360), of a log-mel spectrogram (B, 128, frames)."""
        count = mel.shape[-1]
        # Zeros, not silence (which is -11.5), are what the network was trained to see behind the end.
        padded = F.pad(mel, (0, -count % 32)).transpose(1, 2).unsqueeze(1).to(self.cnn.weight.dtype)
        picture = self.cnn(self.unet(padded)).transpose(1, 2).flatten(2)
        return torch.sigmoid(self.fc(picture)[:, :count].float())

    def forward(self, audio: Tensor) -> NDArray[np.float64]:
        """f0 in Hz, 0 where unvoiced, (B, n // 160 + 1), of 16 kHz audio (B, n): frame k is at sample 160 k."""
        return decode(self.salience(log_mel(audio)).cpu().numpy())


def decode(salience: NDArray[np.float32], threshold: float = UNVOICED) -> NDArray[np.float64]:
    """f0 in Hz (..., frames) of saliences (..., frames, 360): the mean pitch of the 9 bins around the highest."""
    best = salience.argmax(-1)
    near = best[..., None] + np.arange(9)  # in arrays with 4 zeros at both ends
    edges = [(0, 0)] * (salience.ndim - 1) + [(4, 4)]
    weights = np.take_along_axis(np.pad(salience, edges), near, axis=-1).astype(np.float64)
    bin_cents = np.pad(20.0 * np.arange(BINS) + FIRST_CENTS, 4)
    total = weights.sum(-1)
    cents = (weights * bin_cents[near]).sum(-1) / np.where(total > 0, total, 1)
    f0: NDArray[np.float64] = np.where(salience.max(-1) > threshold, 10 * 2 ** (cents / 1200), 0.0)
    return f0
