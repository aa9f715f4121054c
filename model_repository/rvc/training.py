"""What a training leaves, made into a voice: ``python -m model_repository.rvc.training RAW v2-40k-f0 OUT``.

A generator's checkpoint, such as the published base generators, holds ``model`` (also the posterior encoder, which only
training needs), sometimes an optimizer, and no configuration. Shapes do not tell the rates (v1 voices of 32 and 48 kHz
without f0 have equal ones), so the kind must be named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoint import CheckpointError, check_tensors, read, save, voice_weights
from .synthesizer import Synthesizer

_UPSAMPLING = {  # rates, kernels
    "v1-32k": ([10, 4, 2, 2, 2], [16, 16, 4, 4, 4]),
    "v1-40k": ([10, 10, 2, 2], [16, 16, 4, 4]),
    "v1-48k": ([10, 6, 2, 2, 2], [16, 16, 4, 4, 4]),
    "v2-32k": ([10, 8, 2, 2], [20, 16, 4, 4]),
    "v2-40k": ([10, 10, 2, 2], [16, 16, 4, 4]),
    "v2-48k": ([12, 10, 2, 2], [24, 20, 4, 4]),
}
KINDS = tuple(f"{kind}-{pitch}" for kind in _UPSAMPLING for pitch in ("f0", "nof0"))
RAW_BYTES = 4 << 30  # with an optimizer
_NEW_NORM = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}


def configuration(kind: str) -> dict[str, Any]:
    """What a voice's file says of itself, without ``weight``: ``config``, ``sr``, ``f0``, ``version``.

    Raises:
        ValueError: ``kind`` is none of `KINDS`.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r:.40} is no kind of voice; there are: {', '.join(KINDS)}")
    version, rate, pitch = kind.split("-")
    ups, kernels = _UPSAMPLING[f"{version}-{rate}"]
    spectrum = 513 if rate == "32k" else 1025
    blocks = ["1", [3, 7, 11], [[1, 3, 5]] * 3]
    config = [spectrum, 32, 192, 192, 768, 2, 6, 3, 0, *blocks, ups, 512, kernels, 109, 256, int(rate[:-1]) * 1000]
    return {"config": config, "sr": rate, "f0": int(pitch == "f0"), "version": version}


def inference_checkpoint(raw: Path, kind: str, out: Path) -> None:
    """Write the voice in a training checkpoint as an ordinary voice file, half precision; ``out`` appears at once.

    Args:
        raw: the generator's checkpoint, with or without an optimizer.
        kind: one of `KINDS`.
        out: the voice (``.pth``).

    Raises:
        ValueError: the kind is unknown.
        CheckpointError: ``raw`` is no generator, or not of this kind.
    """
    about = configuration(kind)
    file = read(raw, limit=RAW_BYTES)
    model = file.get("model") if isinstance(file, Mapping) else None
    if not isinstance(model, Mapping) or not any(str(name).startswith("enc_p.") for name in model):
        if isinstance(file, Mapping) and isinstance(file.get("weight"), Mapping):
            raise CheckpointError("WRONG_FORMAT", "this is a voice already")
        voice_weights(file)  # says what else it is, if it knows
        raise CheckpointError("WRONG_FORMAT", "not a generator's checkpoint: it has no `model` with an `enc_p`")
    kept = {name: tensor for name, tensor in model.items() if not str(name).startswith("enc_q.")}
    check_tensors(kept)
    halves = {_plain(name): tensor.half() for name, tensor in kept.items()}
    check_tensors(halves)  # what was finite may not be so in half precision
    steps = file.get("iteration")
    info = f"{kind} generator, iteration {steps}" if isinstance(steps, int) else f"{kind} generator"
    voice = {"weight": halves, **about, "info": info}
    Synthesizer.load(voice)
    save(voice, out)


def _plain(name: str) -> str:
    """Names as all RVC programs know them, whatever PyTorch calls weight norm."""
    for new, old in _NEW_NORM.items():
        name = name.replace(new, old)
    return name


def main(arguments: list[str] | None = None) -> int:
    """The command; the exit status is 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m model_repository.rvc.training", description=inference_checkpoint.__doc__
    )
    parser.add_argument("raw", type=Path)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    try:
        inference_checkpoint(options.raw, options.kind, options.out)
    except (CheckpointError, OSError) as error:
        print(f"training: error: {error}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
