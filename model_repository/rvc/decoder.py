"""The decoder: from latent frames to samples, by transposed convolutions, with the excitation added at every stage.

Source: HiFi-GAN (arXiv 2010.05646). Names are those of RVC checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .excitation import Excitation

REACH = 11  # frames to either side on which a frame of audio depends; 10.4 measured
EDGE = 3  # of these, the first and the last convolution see so many places to either side
TILE = 100  # frames that a CPU decodes at once; what the layers make of many more leaves its cache, which costs a third


class ResidualBlock(nn.Module):
    """Pairs of convolutions, the first of each pair dilated."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=kernel // 2) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.convs1, self.convs2, strict=True):
            x = second(F.leaky_relu_(first(F.leaky_relu(x, 0.1)), 0.1)).add_(x)
        return x


class Decoder(nn.Module):
    """Latent frames to audio.

    Args:
        latent: channels of the latent.
        channels: after the first convolution; every stage halves them.
        rates, kernels: of the transposed convolutions; the product of the rates is the samples of a frame.
        block_kernels, block_dilations: of the residual blocks that follow each stage.
        speaker: channels of the speaker embedding.
        rate: samples a second, for the excitation.
        f0: whether there is an excitation.
    """

    def __init__(
        self,
        latent: int,
        channels: int,
        rates: Sequence[int],
        kernels: Sequence[int],
        block_kernels: Sequence[int],
        block_dilations: Sequence[Sequence[int]],
        speaker: int,
        rate: int,
        f0: bool,
    ) -> None:
        super().__init__()
        self.samples = math.prod(rates)
        self.steps = tuple(rates)
        # Places to either side on which one depends: in the residual blocks, and before each transposed convolution.
        self._reach = max(k // 2 * sum(d + 1 for d in ds) for k, ds in zip(block_kernels, block_dilations, strict=True))
        self._up_reach = [math.ceil((k - step) / 2 / step) for step, k in zip(rates, kernels, strict=True)]
        self.blocks = len(block_kernels)
        self.conv_pre = nn.Conv1d(latent, channels, 2 * EDGE + 1, padding=EDGE)
        self.cond = nn.Conv1d(speaker, channels, 1)
        self.m_source = Excitation(rate, self.samples) if f0 else None
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        self.noise_convs = nn.ModuleList() if f0 else None
        for i, (step, kernel) in enumerate(zip(rates, kernels, strict=True)):
            self.ups.append(
                nn.ConvTranspose1d(channels, channels // 2, kernel, stride=step, padding=(kernel - step) // 2)
            )
            channels //= 2
            self.resblocks.extend(
                ResidualBlock(channels, k, d) for k, d in zip(block_kernels, block_dilations, strict=True)
            )
            if self.noise_convs is not None:
                left = math.prod(rates[i + 1 :])  # the excitation has all samples; this stage has 1 in `left`
                wide = 2 * left if left > 1 else 1
                self.noise_convs.append(nn.Conv1d(1, channels, wide, stride=left, padding=left // 2))
        self.conv_post = nn.Conv1d(channels, 1, 2 * EDGE + 1, padding=EDGE, bias=False)

    def forward(self, z: Tensor, g: Tensor, har: Tensor | None, first: int = 0, count: int | None = None) -> Tensor:
        """Audio of a window of ``z``, by default of all.

        Args:
            z: latent, (B, latent, T).
            g: speaker, (B, speaker, 1).
            har: excitation, (B, 1, T * samples), of any float type; None for models without f0.
            first, count: frames of the window. The others are context, computed no further than the window depends
                on them.

        Returns:
            (B, 1, count * samples), in -1..1.
        """
        count = z.shape[-1] - first if count is None else count
        tiles = max(-(-count // TILE), 1) if z.device.type == "cpu" else 1
        bounds = [first + count * i // tiles for i in range(tiles + 1)]
        speaker = self.cond(g)
        return torch.cat([self._tile(z, speaker, har, slice(*pair)) for pair in pairwise(bounds)], dim=-1)

    def _tile(self, z: Tensor, speaker: Tensor, har: Tensor | None, frames: slice) -> Tensor:
        """Audio of these frames, as if all were decoded."""
        used, stages = self._spans(frames, z.shape[-1])
        given = _widened(used, EDGE, z.shape[-1])
        x = _within(self.conv_pre(z[..., given]), used, given.start) + speaker
        for i, ((given, wanted), up) in enumerate(zip(stages, self.ups, strict=True)):
            x = _within(up(F.leaky_relu(x, 0.1)), given, used.start * self.steps[i])
            if self.noise_convs is not None and har is not None:
                step = math.prod(self.steps[i + 1 :])
                x = x + _noise(self.noise_convs[i], har.to(x.dtype), given, step)
            total = self.resblocks[i * self.blocks](x)
            for j in range(i * self.blocks + 1, (i + 1) * self.blocks):
                total += self.resblocks[j](x)
            x, used = _within(total.div_(self.blocks), wanted, given.start), wanted
        # The last slope is PyTorch's default, not the 0.1 of all others: so the checkpoints were trained.
        audio = torch.tanh(self.conv_post(F.leaky_relu(x, 0.01)))
        return _within(audio, _times(frames, self.samples), used.start)

    def _spans(self, frames: slice, all_frames: int) -> tuple[slice, list[tuple[slice, slice]]]:
        """What these frames depend on: frames behind the first convolution; in each stage, samples that its blocks are
        given, and those of their result that are used.
        """
        length, wanted, reach = all_frames * self.samples, _times(frames, self.samples), EDGE
        stages = []
        for step, up_reach in zip(reversed(self.steps), reversed(self._up_reach), strict=True):
            used = _widened(wanted, reach, length)
            given = _widened(used, self._reach, length)
            stages.append((given, used))
            wanted, reach = slice(given.start // step, -(-given.stop // step)), up_reach
            length //= step
        return _widened(wanted, reach, length), stages[::-1]


def _noise(conv: nn.Module, har: Tensor, span: slice, step: int) -> Tensor:
    """Samples ``span`` of ``conv``'s result, each of ``step`` samples of ``har`` and half as many around them."""
    given = _widened(span, 1, har.shape[-1] // step)
    return _within(conv(har[..., _times(given, step)]), span, given.start)


def _times(span: slice, step: int) -> slice:
    return slice(span.start * step, span.stop * step)


def _widened(span: slice, by: int, length: int) -> slice:
    """``span`` and ``by`` places around it, of ``length``."""
    return slice(max(span.start - by, 0), min(span.stop + by, length))


def _within(x: Tensor, span: slice, start: int) -> Tensor:
    """The part ``span`` of ``x``, whose first place is number ``start``."""
    return x[..., span.start - start : span.stop - start]
