"""Settings of the rvc model: ``CONTRAFACT_RVC_<NAME>`` in the environment, else config.pbtxt, else these defaults."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from rvc.residents import PoolSettings
from weights import WeightsError, cache_folder
from weights import path as registered

DTYPES = ("float32", "float16", "bfloat16")
RMVPE = "rmvpe.pt"


@dataclass(frozen=True)
class Settings:
    """How the model runs.

    voices: folder of voice files, a cache if an object store is configured (``CONTRAFACT_S3_ENDPOINT``), else a
    library; by default ``rvc-voices`` in the weights' folder. disk_bytes: of the cache.
    content: HuBERT/ContentVec weights; by default those of the registry, in the weights' folder.
    rmvpe: its weights; by default those of the registry, in the weights' folder; without them pitch is swift-f0's.
    device: ``auto``, ``cpu`` or ``cuda``. dtype: of synthesizer and content encoder on a GPU.
    threads: of the CPU, 0: all that this process may use.
    enabled, capacity, idle_seconds, strategy, memory_bytes: of the voice pool until it is configured otherwise, see
    `PoolSettings`.
    loaders: voices that are loaded at once.
    core, before, after, fade: of a chunk, in frames of 10 ms; clients read them from the model's configuration.
    """

    voices: str = ""
    disk_bytes: int = 2 << 30
    content: str = ""
    rmvpe: str = ""
    device: str = "auto"
    dtype: str = "float32"
    threads: int = 0
    enabled: bool = True
    capacity: int = 10
    idle_seconds: float = 1800.0
    strategy: str = "lru"
    memory_bytes: int = 8 << 30
    loaders: int = 1
    core: int = 400
    before: int = 100
    after: int = 100
    fade: int = 5

    @classmethod
    def read(cls, parameters: Mapping[str, str], instance_kind: str = "CPU", instance_id: str = "0") -> Settings:
        """From config.pbtxt ``parameters`` and the environment; ``auto`` and default folders are resolved.

        Raises:
            ValueError: a value cannot be used; the text names the setting.
        """
        values: dict[str, object] = {}
        for field in fields(cls):
            text = os.environ.get(f"CONTRAFACT_RVC_{field.name.upper()}") or parameters.get(field.name)
            if text is not None and text.strip():
                try:
                    values[field.name] = _CONVERT[str(field.type)](text.strip())
                except ValueError as error:
                    raise ValueError(f"setting {field.name}: {error}") from None
        if values.get("device", "auto") == "auto":
            values["device"] = "cuda" if instance_kind == "GPU" and _cuda() else "cpu"
        if values["device"] == "cuda" and instance_kind == "GPU":
            values["device"] = f"cuda:{instance_id}"
        values.setdefault("voices", str(cache_folder() / "rvc-voices"))
        settings = cls(**values)  # type: ignore[arg-type]
        if settings.dtype not in DTYPES or (settings.dtype != "float32" and settings.device == "cpu"):
            raise ValueError(f"setting dtype: {settings.dtype!r} cannot be used on {settings.device}")
        if settings.loaders < 1 or settings.disk_bytes < 1:
            raise ValueError("settings loaders and disk_bytes must be at least 1")
        return settings

    @property
    def pool(self) -> PoolSettings:
        """How the pool begins; ValueError if it cannot."""
        return PoolSettings(self.enabled, self.capacity, self.idle_seconds, self.strategy, self.memory_bytes)

    def content_file(self) -> Path:
        """The content encoder's weights; ValueError if there are none, or the registry's are damaged."""
        return _named("content", self.content) if self.content else _verified("content", "contentvec")

    def rmvpe_file(self) -> Path | None:
        """RMVPE's weights, None if there are none; ValueError if the setting names none, or they are damaged."""
        if self.rmvpe:
            return _named("rmvpe", self.rmvpe)
        return _verified("rmvpe", "rmvpe") if (cache_folder() / RMVPE).is_file() else None


def _named(setting: str, text: str) -> Path:
    if not (file := Path(text)).is_file():
        raise ValueError(f"setting {setting}: its weights are not there: {file}")
    return file


def _verified(setting: str, name: str) -> Path:
    """A file of the registry; its checksum takes 0.1 s."""
    try:
        return registered(name)
    except WeightsError as error:
        raise ValueError(f"setting {setting}: {error}") from None


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "1")


_CONVERT: dict[str, Callable[[str], object]] = {"int": int, "float": float, "bool": _flag, "str": str}


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
