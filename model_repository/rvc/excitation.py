"""The excitation: a sine at the pitch, noise where there is none. Float32 and above, whatever the network computes in.

Source: the neural source-filter model (DOI 10.1109/TASLP.2019.2956145), one harmonic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

AMPLITUDE = 0.1
VOICED_NOISE = 0.003
UNVOICED_NOISE = AMPLITUDE / 3


def phase_at_frames(f0: Tensor, rate: int, samples: int) -> Tensor:
    """Phase before each frame, counted from the first, and after the last.

    Args:
        f0: Hz, 0 where unvoiced, (B, T).
        rate: samples a second.
        samples: of one frame; f0 is constant within it.

    Returns:
        Cycles in [0, 1), float64, (B, T + 1). Float64, because a track's phase is the sum of all its frames'.
    """
    turns = f0.double() / rate * samples
    before = torch.cumsum(turns - turns.round(), dim=1)
    return torch.nn.functional.pad(before, (1, 0)).remainder(1.0)


class Excitation(nn.Module):
    """`dec.m_source` of a checkpoint.

    Args:
        rate: of the audio.
        samples: of a frame.
    """

    def __init__(self, rate: int, samples: int) -> None:
        super().__init__()
        self.rate, self.samples = rate, samples
        self.l_linear = nn.Linear(1, 1)

    def forward(self, f0: Tensor, noise: Tensor, phase: Tensor | None = None) -> Tensor:
        """The excitation of a stretch of audio.

        Args:
            f0: Hz, 0 where unvoiced, (B, T).
            noise: standard normal, (B, T * samples).
            phase: cycles at the first frame, (B,); default 0. It makes a stretch continue another.

        Returns:
            float32 (B, 1, T * samples).
        """
        starts = phase_at_frames(f0, self.rate, self.samples)[:, :-1]
        if phase is not None:
            starts = starts + phase.to(starts)[:, None]
        # The first sample of a frame is one step in, not at its start: so the checkpoints were trained.
        steps = torch.arange(1, self.samples + 1, device=f0.device, dtype=torch.float64)
        cycles = (f0.double()[:, :, None] / self.rate) * steps + starts[:, :, None]
        sine = AMPLITUDE * torch.sin(2 * math.pi * cycles.remainder(1.0).float().flatten(1))
        voiced = (f0 > 0).float().repeat_interleave(self.samples, dim=1)
        source = voiced * sine + (VOICED_NOISE * voiced + UNVOICED_NOISE * (1 - voiced)) * noise.float()
        weight, bias = self.l_linear.weight.float(), self.l_linear.bias.float()
        return torch.tanh(source * weight[0, 0] + bias[0]).unsqueeze(1)
