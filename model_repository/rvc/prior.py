"""The prior encoder: content features and pitch to the mean and log-scale of the latent, a small transformer.

Names of modules and parameters are those of RVC checkpoints. Source: VITS (arXiv 2106.06103), relative positions as in
Shaw et al. (arXiv 1803.02155).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WINDOW = 10  # relative positions reach this many frames to either side
MASKED = -1e4  # instead of minus infinity: what the checkpoints were trained with


class ChannelNorm(nn.Module):
    """Layer norm over the channels of ``(batch, channels, frames)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.transpose(1, 2), self.gamma.shape, self.gamma, self.beta, 1e-5)
        return normed.transpose(1, 2)


class Attention(nn.Module):
    """Self-attention whose scores and values also know how far apart two frames are, up to `WINDOW`."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.conv_q = nn.Conv1d(channels, channels, 1)
        self.conv_k = nn.Conv1d(channels, channels, 1)
        self.conv_v = nn.Conv1d(channels, channels, 1)
        self.conv_o = nn.Conv1d(channels, channels, 1)
        # One table for all heads: row WINDOW + d belongs to a key d frames later than the query.
        self.emb_rel_k = nn.Parameter(torch.zeros(1, 2 * WINDOW + 1, channels // heads))
        self.emb_rel_v = nn.Parameter(torch.zeros(1, 2 * WINDOW + 1, channels // heads))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``x`` (B, C, T), ``mask`` (B, 1, T) of ones and zeros; returns (B, C, T)."""
        batch, channels, frames = x.shape
        q, k, v = (self._split(conv(x)) for conv in (self.conv_q, self.conv_k, self.conv_v))
        q = q / math.sqrt(q.shape[-1])
        # band[t, j] is the column of key t - WINDOW + j in a matrix with WINDOW extra columns on both sides, so that
        # the near-diagonal terms are a scatter (scores) and a gather (weights) without a T x T x channels array.
        steps = torch.arange(frames, device=x.device)
        band = steps[:, None] + torch.arange(2 * WINDOW + 1, device=x.device)[None]
        band = band.expand(batch, self.heads, -1, -1)
        near = q.new_zeros(batch, self.heads, frames, frames + 2 * WINDOW)
        near.scatter_(-1, band, q @ self.emb_rel_k[0].T)
        scores = q @ k.transpose(-1, -2) + near[..., WINDOW:-WINDOW]
        both = (mask.unsqueeze(-1) * mask.unsqueeze(-2)) == 0  # (B, 1, T, T)
        weights = scores.masked_fill(both, MASKED).softmax(-1)
        out = weights @ v + F.pad(weights, (WINDOW, WINDOW)).gather(-1, band) @ self.emb_rel_v[0]
        attended: Tensor = self.conv_o(out.transpose(-1, -2).reshape(batch, channels, frames))
        return attended

    def _split(self, x: Tensor) -> Tensor:
        """(B, C, T) to (B, heads, T, C / heads)."""
        batch, channels, frames = x.shape
        return x.view(batch, self.heads, channels // self.heads, frames).transpose(-1, -2)


class FeedForward(nn.Module):
    """Two convolutions over time."""

    def __init__(self, channels: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv1d(channels, hidden, kernel, padding=kernel // 2)
        self.conv_2 = nn.Conv1d(hidden, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = torch.relu(self.conv_1(x * mask))
        out: Tensor = self.conv_2(hidden * mask) * mask
        return out


class Transformer(nn.Module):
    """Post-norm layers of attention and feed-forward."""

    def __init__(self, channels: int, hidden: int, heads: int, layers: int, kernel: int) -> None:
        super().__init__()
        self.attn_layers = nn.ModuleList(Attention(channels, heads) for _ in range(layers))
        self.norm_layers_1 = nn.ModuleList(ChannelNorm(channels) for _ in range(layers))
        self.ffn_layers = nn.ModuleList(FeedForward(channels, hidden, kernel) for _ in range(layers))
        self.norm_layers_2 = nn.ModuleList(ChannelNorm(channels) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        layers = zip(self.attn_layers, self.norm_layers_1, self.ffn_layers, self.norm_layers_2, strict=True)
        x = x * mask
        for attention, norm_1, feed, norm_2 in layers:
            x = norm_1(x + attention(x, mask))
            x = norm_2(x + feed(x, mask))
        return x * mask


class PriorEncoder(nn.Module):
    """Content features (and pitch) to the latent's prior distribution.

    Args:
        features: channels of the content features, 256 (v1) or 768 (v2).
        latent: channels of the latent.
        channels, hidden, heads, layers, kernel: of the transformer.
        f0: whether the model knows pitch.
    """

    def __init__(
        self, features: int, latent: int, channels: int, hidden: int, heads: int, layers: int, kernel: int, f0: bool
    ) -> None:
        super().__init__()
        self.channels = channels
        self.emb_phone = nn.Linear(features, channels)
        self.emb_pitch = nn.Embedding(256, channels) if f0 else None
        self.encoder = Transformer(channels, hidden, heads, layers, kernel)
        self.proj = nn.Conv1d(channels, 2 * latent, 1)

    def forward(self, phone: Tensor, pitch: Tensor | None, mask: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of the prior.

        Args:
            phone: content features, (B, T, features).
            pitch: coarse pitch 1..255, (B, T), integers; ignored by models without f0.
            mask: (B, 1, T), one where an item has frames.
            first: frames before this one are context only: the transformer sees them, the result starts here.

        Returns:
            Two arrays (B, latent, T - first).
        """
        x = self.emb_phone(phone)
        if self.emb_pitch is not None:
            x = x + self.emb_pitch(pitch)
        x = F.leaky_relu(x * math.sqrt(self.channels), 0.1)
        x = self.encoder(x.transpose(1, 2), mask)
        mean, log_scale = (self.proj(x[..., first:]) * mask[..., first:]).chunk(2, dim=1)
        return mean, log_scale
