"""Settings of the htdemucs model: from the environment, else from config.pbtxt, else the measured defaults.

Measured on two cores of an AMD EPYC, one segment, in turn, median of 5: demucs' own forward 3.61 s,
torch with scaled-dot-product attention 3.04 s (1.19 times as fast, 124 dB from demucs' own answer), OpenVINO
2.50 s (1.44 times, 91 dB). Hence ``backend=auto`` takes OpenVINO on a CPU when it is installed.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
DEVICES = ("auto", "cpu", "cuda")
BACKENDS = ("auto", "torch", "openvino")
DTYPES = ("float32", "tf32", "bfloat16", "float16")


@dataclass(frozen=True)
class Settings:
    """How the network runs.

    device: ``cpu`` or ``cuda``. ``auto``: a GPU if the instance was placed on one and torch can use it.
    backend: ``torch`` or ``openvino`` (CPU only). ``auto``: see the module.
    dtype: of the layers on a GPU; the transforms stay float32. ``float32`` is exact, also without TF32.
    threads: of one inference on a CPU; 0: ``OMP_NUM_THREADS``, else the cores this process may use.
    compile: ``torch.compile`` the network; minutes at the first segment.
    """

    device: str = "auto"
    backend: str = "auto"
    dtype: str = "float32"
    threads: int = 0
    compile: bool = False

    @classmethod
    def read(cls, parameters: Mapping[str, str], instance_kind: str = "CPU", instance_id: str = "0") -> Settings:
        """From config.pbtxt ``parameters``; ``CONTRAFACT_HTDEMUCS_<NAME>`` in the environment wins.

        ``instance_kind`` and ``instance_id`` are Triton's; every ``auto`` is resolved.

        Raises:
            ValueError: a value is none of the allowed ones; the text names the setting.
        """
        device = _value(parameters, "device", "auto", _one_of(DEVICES))
        if device == "auto":
            device = "cuda" if instance_kind == "GPU" and _cuda() else "cpu"
        if device == "cuda" and instance_kind == "GPU":
            device = f"cuda:{instance_id}"
        backend = _value(parameters, "backend", "auto", _one_of(BACKENDS))
        if backend == "auto":
            has_openvino = importlib.util.find_spec("openvino") is not None
            backend = "openvino" if device == "cpu" and has_openvino else "torch"
        if backend == "openvino" and device != "cpu":
            raise ValueError("setting backend: openvino runs on the CPU only; set device to cpu")
        dtype = _value(parameters, "dtype", "float32", _one_of(DTYPES))
        if dtype != "float32" and device == "cpu":
            raise ValueError(f"setting dtype: {dtype} is for a GPU; nothing is gained from it on a CPU")
        threads = _value(parameters, "threads", "0", int)
        compiled = _value(parameters, "compile", "false", _one_of(("true", "false"))) == "true"
        return cls(device, backend, dtype, threads or _all_threads(), compiled)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _all_threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0))


def _one_of(allowed: tuple[str, ...]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"{value!r} is none of: {', '.join(allowed)}")
        return value

    return check


def _value(parameters: Mapping[str, str], name: str, default: str, convert: Callable[[str], T]) -> T:
    text = os.environ.get(f"CONTRAFACT_HTDEMUCS_{name.upper()}") or parameters.get(name) or default
    try:
        return convert(text.strip().lower())
    except ValueError as error:
        raise ValueError(f"setting {name}: {error}") from None
