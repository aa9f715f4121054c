"""The decoder in tiles and windows: the same audio as of all frames at once, and no more work than that needs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model_repository.rvc.decoder import TILE, Decoder
from tests.model_repository.rvc.conftest import relative, tiny_voice


def plain(decoder: Decoder, z: Tensor, g: Tensor, har: Tensor | None) -> Tensor:
    """All frames at once, as HiFi-GAN's paper has it."""
    x = decoder.conv_pre(z) + decoder.cond(g)
    for i, up in enumerate(decoder.ups):
        x = up(F.leaky_relu(x, 0.1))
        if decoder.noise_convs is not None:
            x = x + decoder.noise_convs[i](har)
        blocks = decoder.resblocks[i * decoder.blocks : (i + 1) * decoder.blocks]
        x = torch.stack([block(x) for block in blocks]).mean(0)
    audio: Tensor = torch.tanh(decoder.conv_post(F.leaky_relu(x, 0.01)))
    return audio


def given(decoder: Decoder, frames: int, items: int = 1) -> tuple[Tensor, Tensor, Tensor | None]:
    """Latent, speaker and excitation."""
    generator = torch.Generator().manual_seed(frames)
    shapes = ((decoder.conv_pre.in_channels, frames), (decoder.cond.in_channels, 1), (1, frames * decoder.samples))
    z, g, har = (torch.randn(items, *shape, generator=generator) for shape in shapes)
    return z, g, 0.1 * har if decoder.noise_convs is not None else None


@torch.inference_mode()
@pytest.mark.parametrize("f0", [True, False])
@pytest.mark.parametrize("rate", [32_000, 48_000])
def test_a_window_is_that_part_of_the_whole(rate: int, f0: bool) -> None:
    decoder = tiny_voice("v2", f0, rate).synthesizer.dec
    frames = 2 * TILE + 31
    inputs = given(decoder, frames, items=2)
    whole = plain(decoder, *inputs)
    assert relative(whole.numpy(), decoder(*inputs).numpy()) <= 1e-5
    for first, count in ((0, 1), (1, 5), (11, 30), (11, frames - 22), (frames - 12, 12), (3, 2 * TILE)):
        part = whole[..., first * decoder.samples : (first + count) * decoder.samples]
        assert relative(part.numpy(), decoder(*inputs, first, count).numpy()) <= 1e-5


@torch.inference_mode()
def test_context_is_not_decoded_to_the_end() -> None:
    """Of the 11 frames that a live window has to either side, the later stages, which cost most, see less than one."""
    decoder = tiny_voice().synthesizer.dec
    lengths: list[int] = []
    hooks = [
        decoder.resblocks[i * decoder.blocks].register_forward_pre_hook(
            lambda _, args: lengths.append(args[0].shape[-1])
        )
        for i in range(1, 4)
    ]
    try:
        decoder(*given(decoder, 52), 11, 30)
    finally:
        for hook in hooks:
            hook.remove()
    frames = [length / samples for length, samples in zip(lengths, (80, 160, 320), strict=True)]
    assert all(30 < seen <= 33 for seen in frames), frames
