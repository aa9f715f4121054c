"""Settings of the embedder: ``CONTRAFACT_EMBEDDER_<NAME>`` in the environment, else those of config.pbtxt."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass

CHOICES = {"device": ("auto", "cpu", "cuda"), "backend": ("auto", "openvino", "onnxruntime")}


@dataclass(frozen=True)
class Settings:
    """How the network runs.

    device: ``cpu`` or ``cuda``. ``auto``: a GPU if the instance was placed on one and ONNX Runtime can use it.
    device_id: of the GPU.
    backend: ``openvino`` (CPU only) or ``onnxruntime``. ``auto``: OpenVINO on a CPU, if it is installed.
    threads: of one inference on a CPU; 0: ``OMP_NUM_THREADS``, else the cores this process may use.
    """

    device: str = "cpu"
    device_id: int = 0
    backend: str = "openvino"
    threads: int = 1

    @classmethod
    def read(cls, parameters: Mapping[str, str], instance_kind: str = "CPU", instance_id: str = "0") -> Settings:
        """From config.pbtxt ``parameters`` and the environment; every ``auto`` is resolved.

        Raises:
            ValueError: a value is none of the allowed ones; the text names the setting.
        """

        def value(name: str, default: str) -> str:
            text = os.environ.get(f"CONTRAFACT_EMBEDDER_{name.upper()}") or parameters.get(name) or default
            if name in CHOICES and text not in CHOICES[name]:
                raise ValueError(f"setting {name}: {text!r} is none of: {', '.join(CHOICES[name])}")
            return text

        device, backend, threads = value("device", "auto"), value("backend", "auto"), value("threads", "0")
        if not threads.isdecimal():
            raise ValueError(f"setting threads: {threads!r} is not a number")
        if device == "auto":
            device = "cuda" if instance_kind == "GPU" and _cuda() else "cpu"
        if backend == "auto":
            has_openvino = importlib.util.find_spec("openvino") is not None
            backend = "openvino" if device == "cpu" and has_openvino else "onnxruntime"
        if device == "cuda" and backend == "openvino":
            raise ValueError("setting backend: openvino runs on the CPU only; set device to cpu")
        if device == "cuda" and not _cuda():
            raise ValueError("setting device: for cuda, the installed ONNX Runtime must be the one for GPUs")
        return cls(device, int(instance_id), backend, int(threads) or _all_threads())


def _cuda() -> bool:
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _all_threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0))
