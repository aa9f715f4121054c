"""The flow: from the prior's latent to the decoder's, as the speaker would have it. Only its inverse is needed.

Source: VITS (arXiv 2106.06103): mean-only affine couplings around a small WaveNet. Names are those of RVC checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

COUPLINGS = 4
LAYERS = 3
KERNEL = 5
REACH = 24  # frames to either side on which a latent frame depends: COUPLINGS * LAYERS * (KERNEL // 2)


class WaveNet(nn.Module):
    """Gated convolutions with residual and skip connections, conditioned on the speaker."""

    def __init__(self, hidden: int, speaker: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.cond_layer = nn.Conv1d(speaker, 2 * hidden * LAYERS, 1)
        self.in_layers = nn.ModuleList(
            nn.Conv1d(hidden, 2 * hidden, KERNEL, padding=KERNEL // 2) for _ in range(LAYERS)
        )
        # The last layer feeds no other one, so it has only the half that is added to the result.
        self.res_skip_layers = nn.ModuleList(
            nn.Conv1d(hidden, hidden if last else 2 * hidden, 1) for last in [False] * (LAYERS - 1) + [True]
        )

    def forward(self, h: Tensor, mask: Tensor, g: Tensor) -> Tensor:
        """``h`` (B, hidden, T), ``mask`` (B, 1, T), ``g`` (B, speaker, 1); returns (B, hidden, T)."""
        speaker = self.cond_layer(g).chunk(LAYERS, dim=1)
        out = torch.zeros_like(h)
        for i, (conv, mix) in enumerate(zip(self.in_layers, self.res_skip_layers, strict=True)):
            wave, gate = (conv(h) + speaker[i]).chunk(2, dim=1)
            r = mix(torch.tanh(wave) * torch.sigmoid(gate))
            if i < LAYERS - 1:
                h = (h + r[:, : self.hidden]) * mask
                r = r[:, self.hidden :]
            out = out + r
        return out * mask


class Coupling(nn.Module):
    """Moves one half of the channels by an amount that the other half decides."""

    def __init__(self, channels: int, hidden: int, speaker: int) -> None:
        super().__init__()
        self.pre = nn.Conv1d(channels // 2, hidden, 1)
        self.enc = WaveNet(hidden, speaker)
        self.post = nn.Conv1d(hidden, channels // 2, 1)

    def inverse(self, x: Tensor, mask: Tensor, g: Tensor) -> Tensor:
        """Undo the coupling on ``x`` (B, channels, T)."""
        kept, moved = x.chunk(2, dim=1)
        mean = self.post(self.enc(self.pre(kept) * mask, mask, g)) * mask
        return torch.cat([kept, (moved - mean) * mask], dim=1)


class Flow(nn.Module):
    """Couplings, each followed by a reversal of the channel order."""

    def __init__(self, channels: int, hidden: int, speaker: int) -> None:
        super().__init__()
        # The reversals have no parameters but count in the checkpoint's names, hence the empty odd places.
        self.flows = nn.ModuleList(
            module for _ in range(COUPLINGS) for module in (Coupling(channels, hidden, speaker), nn.Identity())
        )

    def inverse(self, x: Tensor, mask: Tensor, g: Tensor) -> Tensor:
        """Prior latent ``x`` (B, channels, T) to the decoder's latent; ``mask`` (B, 1, T), ``g`` (B, speaker, 1)."""
        for coupling in reversed(self.flows):
            if isinstance(coupling, Coupling):
                x = coupling.inverse(x.flip(1), mask, g)
        return x
