"""Settings of the rvc model: ``CONTRAFACT_RVC_<NAME>`` in the environment, else config.pbtxt, else these defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """How the model runs.

    voices: folder of ``NAME.pth`` and ``NAME.index``. content: HuBERT/ContentVec weights. rmvpe: its weights; without
    them pitch is swift-f0's. device: ``auto``, ``cpu`` or ``cuda``. dtype: of synthesizer and content encoder on a GPU.
    threads: of the CPU, 0: all that this process may use. capacity, idle_seconds: of the voice pool.
    core, before, after, fade: of a chunk, in frames of 10 ms; clients read them from the model's configuration.
    """

    voices: str = ""
    content: str = ""
    rmvpe: str = ""
    device: str = "auto"
    dtype: str = "float32"
    threads: int = 0
    capacity: int = 10
    idle_seconds: float = 1800.0
    core: int = 400
    before: int = 100
    after: int = 100
    fade: int = 5

    @classmethod
    def read(cls, parameters: Mapping[str, str], instance_kind: str = "CPU", instance_id: str = "0") -> Settings:
        """From config.pbtxt ``parameters`` and the environment; ``auto`` is resolved.

        Raises:
            ValueError: a value cannot be used; the text names the setting.
        """
        values: dict[str, str | int | float] = {}
        for field in fields(cls):
            text = os.environ.get(f"CONTRAFACT_RVC_{field.name.upper()}") or parameters.get(field.name)
            if text is not None and text.strip():
                try:
                    values[field.name] = {"int": int, "float": float}.get(str(field.type), str)(text.strip())
                except ValueError:
                    raise ValueError(f"setting {field.name}: {text!r} is not a number") from None
        if values.get("device", "auto") == "auto":
            values["device"] = "cuda" if instance_kind == "GPU" and _cuda() else "cpu"
        if values["device"] == "cuda" and instance_kind == "GPU":
            values["device"] = f"cuda:{instance_id}"
        settings = cls(**values)  # type: ignore[arg-type]
        if settings.dtype not in DTYPES or (settings.dtype != "float32" and settings.device == "cpu"):
            raise ValueError(f"setting dtype: {settings.dtype!r} cannot be used on {settings.device}")
        if not Path(settings.content).is_file():
            raise ValueError("setting content: the content encoder's weights are not there")
        if settings.rmvpe and not Path(settings.rmvpe).is_file():
            raise ValueError("setting rmvpe: its weights are not there")
        if not Path(settings.voices).is_dir() or not settings.voices:
            raise ValueError("setting voices: the folder of voices is not there")
        return settings


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
