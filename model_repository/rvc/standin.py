"""Stand-ins for weights, generated where nothing can be downloaded. **A stand-in sings noise**: it is for trying the
machinery.

    python -m model_repository.rvc.standin content standin-content.pt
    python -m model_repository.rvc.standin voice VOICES/standin.pth

Every number comes from its tensor's name and a seed, by integers and single roundings: the same on every machine.
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .checkpoint import save, without_weights
from .content import ContentEncoder
from .synthesizer import FEATURES, Config, Synthesizer
from .training import configuration

CONTENT_FILE = "standin-content.pt"
KIND = "v2-40k-f0"
SPEAKERS = 4
_NORMED = ("dec.ups.", "dec.resblocks.", ".enc.cond_layer.", ".enc.in_layers.", ".enc.res_skip_layers.")


def content(out: Path, seed: int = 0) -> None:
    """Write a content encoder of full size (190 MB) that `ContentEncoder.load` takes; ``out`` appears at once."""
    with without_weights():
        shapes = {name: tuple(tensor.shape) for name, tensor in ContentEncoder().state_dict().items()}
    save({name: _half(_content_tensor(seed, name, shape)) for name, shape in shapes.items()}, out)


def voice(out: Path, seed: int = 0) -> None:
    """Write a v2 voice of 40 kHz with f0 and four speakers (55 MB); ``out`` appears at once."""
    about = configuration(KIND)
    with without_weights():
        model = Synthesizer(Config.read(about, FEATURES["v2"]), SPEAKERS)
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        values = _voice_tensor(seed, name, tuple(tensor.shape))
        if name.endswith(".weight") and any(part in name for part in _NORMED):
            squares = np.square(values).reshape(len(values), -1)
            norm = np.array([math.sqrt(math.fsum(row)) for row in squares]).reshape(-1, 1, 1)
            weights[f"{name}_g"], weights[f"{name}_v"] = _half(norm), _half(values)
        else:
            weights[name] = _half(values)
    save({"weight": weights, **about, "info": "a stand-in: sings noise"}, out)


def _half(values: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float16))


def _noise(seed: int, name: str, shape: tuple[int, ...], zero_rows: bool = False) -> NDArray[np.float64]:
    """Uniform noise of unit variance; with ``zero_rows``, every row (first dimension) sums to zero."""
    source = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))
    steps = np.frombuffer(source.bytes(2 * math.prod(shape)), "<i2").reshape(shape).astype(np.float64)
    if zero_rows:  # sums of integers are exact in any order
        steps -= (steps.reshape(shape[0], -1).sum(1) / math.prod(shape[1:])).reshape(-1, *[1] * (len(shape) - 1))
    return steps * (math.sqrt(3.0) / 32768)


def _content_tensor(seed: int, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    if len(shape) == 1:
        return (0.05 if name.endswith("bias") else 0.1) * _noise(seed, name, shape) + (not name.endswith("bias"))
    fan = math.prod(shape[1:])
    if ".feature_extractor." in name or ".output_dense." in name:  # behind a GELU: their input is positive on average
        return _noise(seed, name, shape, zero_rows=True) * math.sqrt(2 / fan)
    sharp = 1.5 if ".q_proj." in name or ".k_proj." in name else 1.0  # attention that is not flat
    return _noise(seed, name, shape) * (sharp / math.sqrt(fan))


def _voice_tensor(seed: int, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    if name == "dec.m_source.l_linear.weight":
        return np.full(shape, 3.0)
    values = _noise(seed, name, shape)
    if name.endswith("gamma"):
        return 1 + 0.1 * values
    if name.endswith(("bias", "beta")):
        return 0.05 * values
    if name in ("emb_g.weight", "enc_p.emb_pitch.weight"):
        return 0.3 * values
    if name.endswith(("emb_rel_k", "emb_rel_v")):
        return values / math.sqrt(shape[-1])
    if name.startswith("dec.ups."):  # a transposed convolution: about twice its input channels meet in a sample
        return values / math.sqrt(2 * shape[0])
    values = values / math.sqrt(math.prod(shape[1:]))
    if name == "enc_p.proj.weight":
        values[shape[0] // 2 :] *= 0.2  # the prior's log scale
    if name == "dec.conv_post.weight":
        values *= 0.3  # the loudness
    return values


def main(arguments: list[str] | None = None) -> int:
    """The command; prints the file."""
    parser = argparse.ArgumentParser(
        prog="python -m model_repository.rvc.standin", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("what", choices=("content", "voice"))
    parser.add_argument("path", type=Path)
    options = parser.parse_args(arguments)
    make: Mapping[str, Any] = {"content": content, "voice": voice}
    make[options.what](options.path)
    print(options.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
