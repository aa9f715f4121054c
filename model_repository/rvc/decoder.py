"""The decoder: from latent frames to samples, by transposed convolutions, with the excitation added at every stage.

Source: HiFi-GAN (arXiv 2010.05646). Names are those of RVC checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .excitation import Excitation

REACH = 11  # frames to either side on which a frame of audio depends; 10.4 measured


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
            x = x + second(F.leaky_relu(first(F.leaky_relu(x, 0.1)), 0.1))
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
        self.blocks = len(block_kernels)
        self.conv_pre = nn.Conv1d(latent, channels, 7, padding=3)
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
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3, bias=False)

    def forward(self, z: Tensor, g: Tensor, har: Tensor | None) -> Tensor:
        """Audio of ``z``.

        Args:
            z: latent, (B, latent, T).
            g: speaker, (B, speaker, 1).
            har: excitation, (B, 1, T * samples), of any float type; None for models without f0.

        Returns:
            (B, 1, T * samples), in -1..1.
        """
        x = self.conv_pre(z) + self.cond(g)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            if self.noise_convs is not None and har is not None:
                x = x + self.noise_convs[i](har.to(x.dtype))
            total = self.resblocks[i * self.blocks](x)
            for j in range(i * self.blocks + 1, (i + 1) * self.blocks):
                total = total + self.resblocks[j](x)
            x = total / self.blocks
        # The last slope is PyTorch's default, not the 0.1 of all others: so the checkpoints were trained.
        return torch.tanh(self.conv_post(F.leaky_relu(x, 0.01)))
