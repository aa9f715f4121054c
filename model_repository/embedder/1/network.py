"""The network: windows in, vectors out, on OpenVINO or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from about import DIMENSIONS, read
from numpy.typing import NDArray
from settings import Settings

Samples = NDArray[np.float32]
Run = Callable[[Samples], Samples]  # [n, window] -> [n, d]
ON_A_CPU = 1  # windows at once, where more are no faster: then what a window gives does not depend on its neighbours
ON_A_GPU = 8


class Network:
    """Makes vectors of windows. Not thread-safe: one to a model instance.

    Attributes:
        about: what it is.
    """

    def __init__(self, file: Path, settings: Settings) -> None:
        """Load the network and try it on a window of noise, which is its warm-up, too.

        Raises:
            ValueError: it cannot be loaded, or takes or gives something else; the text says what.
        """
        self.about = read(file)
        self._step = ON_A_CPU if settings.device == "cpu" else ON_A_GPU
        load = _openvino if settings.backend == "openvino" else _onnxruntime
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, (self._step, self.about.window)).astype(np.float32)
        try:
            self._run: Run = load(file, self.about.window, settings)
            made = self._run(noise)
        except Exception as error:  # whatever the backend's own are
            lines = str(error).strip().splitlines() or [""]
            raise ValueError(f"the network does not work on {settings.backend}: {lines[-1][:200]}") from None
        fits = made.ndim == 2 and len(made) == self._step and 1 <= made.shape[1] <= DIMENSIONS
        if made.dtype != np.float32 or not fits:
            expected = f"float32 [{self._step}, 1 to {DIMENSIONS}]"
            raise ValueError(f"the network makes {made.dtype} {list(made.shape)}, not {expected}")
        if not np.isfinite(made).all():
            raise ValueError("the network made a vector of noise that is not finite")
        self.about = replace(self.about, dimensions=int(made.shape[1]))

    def __call__(self, windows: Samples, unwanted: Callable[[], bool] = lambda: False) -> Samples | None:
        """Vectors ``[n, d]`` of ``windows`` ``[n, window]``; None if ``unwanted``, asked now and then, became true."""
        made = []
        for start in range(0, len(windows), self._step):
            if unwanted():
                return None
            part = windows[start : start + self._step]
            padded = np.concatenate([part, np.zeros((self._step - len(part), part.shape[1]), np.float32)])
            made.append(self._run(padded)[: len(part)])
        return np.concatenate(made)


def _openvino(file: Path, window: int, settings: Settings) -> Run:
    import openvino

    core = openvino.Core()
    network = core.read_model(file)
    if len(network.inputs) != 1:
        raise ValueError(f"it has {len(network.inputs)} inputs, not one")
    network.reshape([ON_A_CPU, window])
    options = {
        "INFERENCE_NUM_THREADS": settings.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # other processes of the stack share the cores
    }
    request = core.compile_model(network, "CPU", options).create_infer_request()

    def run(windows: Samples) -> Samples:
        request.infer([windows])
        return np.array(request.get_output_tensor(0).data)

    return run


def _onnxruntime(file: Path, window: int, settings: Settings) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    on_gpu = [("CUDAExecutionProvider", {"device_id": settings.device_id})] if settings.device == "cuda" else []
    session = onnxruntime.InferenceSession(str(file), options, providers=[*on_gpu, "CPUExecutionProvider"])
    inputs: list[Any] = session.get_inputs()
    if len(inputs) != 1:
        raise ValueError(f"it has {len(inputs)} inputs, not one")
    at_once = inputs[0].shape[0] if isinstance(inputs[0].shape[0], int) else None

    def run(windows: Samples) -> Samples:
        parts = np.split(windows, len(windows) // at_once) if at_once else [windows]
        return np.concatenate([session.run(None, {inputs[0].name: part})[0] for part in parts])

    return run
