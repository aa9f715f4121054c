"""The htdemucs network, one batch of segments in, stems out, on torch or OpenVINO.

HTDemucs is a short-time Fourier transform, a core that is all layers, and the inverse transform. The transforms
always run in torch, in float32; the core runs where the settings say. Transforms and layers are those of the
installed ``demucs`` package.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from demucs.htdemucs import HTDemucs
from settings import Settings
from weights import htdemucs

SEGMENT = htdemucs.SEGMENT
# What HTDemucs' own transform methods read of `self`: enough to call them without a network.
_TRANSFORM: Any = SimpleNamespace(nfft=4096, hop_length=1024, cac=True, wiener_iters=0)
_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}

# (mix [batch, 2, SEGMENT], magnitude [batch, 4, 2048, 336], unwanted)
#   -> (spectrum [batch, 4, 4, 2048, 336], waveform [batch, 4, 2, SEGMENT]), or None if it became unwanted
Core = Callable[[torch.Tensor, torch.Tensor, Callable[[], bool]], tuple[torch.Tensor, torch.Tensor] | None]


class LayersOnly(torch.nn.Module):
    """HTDemucs between its transforms: they are replaced by what is given and kept.

    The methods are replaced on one network and not in a subclass, because the exporters trace
    ``HTDemucs.forward`` as it is.
    """

    def __init__(self, network: HTDemucs) -> None:
        super().__init__()
        self.network = network
        self._given: Any = None
        self._kept: Any = None
        transforms: dict[str, Callable[..., Any]] = {
            "_spec": lambda mix: self._given,
            "_magnitude": lambda spectrum: spectrum,
            "_mask": lambda spectrum, answer: self._keep(answer),
            "_ispec": lambda spectrum, length: 0.0,  # forward adds this to its waveform branch
        }
        for name, replacement in transforms.items():
            setattr(network, name, replacement)

    def _keep(self, answer: torch.Tensor) -> torch.Tensor:
        self._kept = answer
        return answer

    def forward(self, mix: torch.Tensor, magnitude: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self._given = magnitude
        waveform = self.network(mix)
        return self._kept, waveform


class Separator:
    """Separates segments. Not thread-safe: one to a model instance."""

    def __init__(self, weights_file: Path, settings: Settings) -> None:
        """Load the weights, and for OpenVINO the exported core cached beside them (made on first use: 12 s).

        Raises:
            WeightsCorrupt: the file does not fit the network.
        """
        self.settings = settings
        if settings.device == "cpu":
            torch.set_num_threads(settings.threads)
        # demucs' attention otherwise takes a fused path that is slower than SDPA and cannot be exported.
        torch.backends.mha.set_fastpath_enabled(False)
        # PyTorch lets cuDNN round float32 to TF32 unless told not to.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = settings.dtype == "tf32"
        if settings.backend == "openvino":
            import openvino_core

            self._core: Core = openvino_core.load(
                weights_file, lambda: LayersOnly(htdemucs.load(weights_file)), settings.threads
            )
        else:
            layers: Any = LayersOnly(htdemucs.load(weights_file)).to(settings.device)
            run: Any = torch.compile(layers) if settings.compile else layers
            self._core = lambda mix, magnitude, unwanted: run(mix, magnitude)

    @torch.inference_mode()
    def __call__(self, mix: torch.Tensor, unwanted: Callable[[], bool] = lambda: False) -> torch.Tensor | None:
        """Stems ``[batch, 4, 2, SEGMENT]`` of ``mix`` ``[batch, 2, SEGMENT]``, float32 on the CPU, same scale.

        None if ``unwanted``, which OpenVINO asks while it works, became true meanwhile.
        """
        mix = mix.to(self.settings.device)
        spectrum = HTDemucs._spec(_TRANSFORM, mix)
        magnitude = HTDemucs._magnitude(_TRANSFORM, spectrum)
        with self._precision():
            made = self._core(mix, magnitude, unwanted)
        if made is None:
            return None
        answer, waveform = made
        masked = HTDemucs._mask(_TRANSFORM, spectrum, answer.float())
        stems: torch.Tensor = waveform.float() + HTDemucs._ispec(_TRANSFORM, masked, SEGMENT)
        return stems.cpu()

    def _precision(self) -> torch.autocast:
        dtype = _AUTOCAST.get(self.settings.dtype)
        device = torch.device(self.settings.device).type
        return torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
