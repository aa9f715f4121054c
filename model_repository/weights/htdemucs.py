"""The htdemucs weight set: the network it fits, and the proof that the two compute the right thing.

The network is ``demucs.htdemucs.HTDemucs`` (Rouard et al., "Hybrid Transformers for Music Source Separation",
ICASSP 2023) of the installed ``demucs`` package. Torch and demucs are imported only when used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _onnx, _tensors
from ._errors import WeightsCorrupt, WeightsError

if TYPE_CHECKING:
    from demucs.htdemucs import HTDemucs

STEMS = ("drums", "bass", "other", "vocals")
SAMPLE_RATE = 44_100
SEGMENT = 343_980  # frames: 7.8 s, the length the network was trained on
ARCHITECTURE: dict[str, Any] = {
    "sources": list(STEMS),
    "channels": 48,
    "bottom_channels": 512,
    "t_layers": 5,
    "dconv_mode": 3,
    "segment": Fraction(39, 5),
}


def canonicalise(raw: Path, out: Path) -> None:
    """Write the canonical file (float16, sorted) of ``raw``: the hub's safetensors, or an ONNX export.

    Raises:
        WeightsCorrupt: ``raw`` cannot be read or holds something else.
    """
    tensors = _onnx.state_dict(raw) if raw.suffix == ".onnx" else _tensors.read(raw)
    _tensors.write(out, _tensors.halve(raw, tensors))


def load(file: Path) -> HTDemucs:
    """The network in evaluation mode, float32, on the CPU, with the weights of ``file``.

    Raises:
        WeightsCorrupt: a tensor is missing, too many, or of another shape.
    """
    import torch
    from demucs.htdemucs import HTDemucs

    network: HTDemucs = HTDemucs(**ARCHITECTURE)
    state = {name: torch.from_numpy(array).float() for name, array in _tensors.read(file).items()}
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise WeightsCorrupt(file, "tensors", "those of HTDemucs", " ".join(str(error).split())) from None
    network.eval().requires_grad_(False)
    return network


def check_input() -> NDArray[Any]:
    """One segment, float32 ``[2, SEGMENT]`` with unit variance, the same on every machine.

    A low tone (bass), a vibrato tone with partials (voice), decaying noise bursts (drums): every stem answers.
    The noise is an integer hash of the frame number: a library's random stream could change between versions.
    """
    frame = np.arange(SEGMENT, dtype=np.float64)
    time = frame / SAMPLE_RATE
    noise = _hash(np.arange(SEGMENT, dtype=np.uint32)) / 2.0**31 - 1.0
    beat = np.exp(-(time % 0.5) * 30.0)
    voice_phase = 2 * np.pi * (330.0 * time - 1.5 * np.cos(2 * np.pi * 5.5 * time))
    voice = sum(np.sin(partial * voice_phase) / partial for partial in range(1, 7))
    bass = np.sin(2 * np.pi * 55.0 * time) + 0.3 * np.sin(2 * np.pi * 110.0 * time)
    left = 0.6 * noise * beat + 0.5 * bass + 0.4 * voice
    right = 0.6 * np.roll(noise, 7) * beat + 0.5 * bass + 0.35 * voice
    mix = np.stack([left, right])
    normal: NDArray[np.float32] = ((mix - mix.mean()) / mix.std()).astype(np.float32)
    return normal


def _hash(x: NDArray[Any]) -> NDArray[Any]:
    """Well-mixed uint32 of each uint32 (C. Wellons' *lowbias32*)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    mixed: NDArray[np.uint32] = x ^ (x >> np.uint32(16))
    return mixed


def statistics(mix: NDArray[Any], stems: NDArray[Any]) -> dict[str, list[float]]:
    """Per stem ``[mean, standard deviation, peak, correlation with the mix]`` of ``stems`` ``[4, 2, frames]``."""
    result = {}
    for name, stem in zip(STEMS, stems.astype(np.float64), strict=True):
        correlation = np.vdot(stem, mix) / np.sqrt(np.vdot(stem, stem) * np.vdot(mix, mix))
        result[name] = [float(stem.mean()), float(stem.std()), float(np.abs(stem).max()), float(correlation)]
    return result


def check(file: Path, expected: Mapping[str, Any]) -> None:
    """Run `check_input` through the network and compare `statistics` with ``expected``.

    The weights may be right and the result wrong: another version of ``demucs`` or ``torch``.

    Raises:
        WeightsError: a statistic is off by more than ``expected["tolerance"]``, absolute; text says which.
    """
    import torch

    mix = check_input()
    with torch.inference_mode():
        stems = load(file)(torch.from_numpy(mix)[None])[0].numpy()
    actual = statistics(mix, stems)
    compare(file, expected, actual)


def compare(file: Path, expected: Mapping[str, Any], actual: Mapping[str, Sequence[float]]) -> None:
    """Raise `WeightsError` where ``actual`` statistics differ from ``expected`` ones."""
    tolerance = float(expected["tolerance"])
    for stem in STEMS:
        for name, want, got in zip(
            ("mean", "deviation", "peak", "correlation"), expected[stem], actual[stem], strict=True
        ):
            if not abs(want - got) <= tolerance:  # also when NaN
                raise WeightsError(
                    f"{file}: the network computes something else: {stem} {name}: expected {want:.6f}, "
                    f"found {got:.6f}; are the installed demucs and torch the ones Contrafact supports?"
                )
