"""A small network that embeds audio: log energies in bands, projected by fixed weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_repository import weights

RATE, WINDOW, HOP, DIMENSIONS = 8000, 16_000, 8000, 32
FRAME, STEP, BANDS = 512, 256, 24
METADATA = {"name": "tiny-1", "sample_rate": str(RATE), "window": str(WINDOW), "hop": str(HOP)}


def write_network(
    path: Path, metadata: dict[str, str] | None = None, *, dimensions: int = DIMENSIONS, scale: float = 1.0
) -> str:
    """Write the network to ``path``; the SHA-256 of the file.

    Args:
        path: where to.
        metadata: what it says of itself that is not as in ``METADATA``; what is empty is left out.
        dimensions: of what it makes.
        scale: of what it makes.
    """
    told = {**METADATA, **(metadata or {})}
    weights: dict[str, NDArray[Any]] = {
        "axis": np.array([1], np.int64),
        "kernels": _kernels(),
        "floor": np.array([1e-6], np.float32),
        "projection": _projection(dimensions) * np.float32(scale),
        "time": np.array([2], np.int64),
        "bands": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["windows", "axis"], ["one_channel"]),
        helper.make_node("Conv", ["one_channel", "kernels"], ["parts"], strides=[STEP]),
        helper.make_node("Mul", ["parts", "parts"], ["energies"]),
        helper.make_node("ReduceMean", ["energies", "time"], ["mean"], keepdims=0),
        helper.make_node("Add", ["mean", "floor"], ["above"]),
        helper.make_node("Log", ["above"], ["levels"]),
        helper.make_node("ReduceMean", ["levels", "bands"], ["level"], keepdims=1),
        helper.make_node("Sub", ["levels", "level"], ["shape"]),
        helper.make_node("MatMul", ["shape", "projection"], ["vectors"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("windows", TensorProto.FLOAT, ["n", int(told["window"] or 1)])],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", dimensions])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {f"contrafact.{key}": value for key, value in told.items() if value})
    onnx.save(model, str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def expected(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the network makes of float32 ``[n, WINDOW]``, by NumPy: float32 ``[n, DIMENSIONS]``."""
    frames = np.lib.stride_tricks.sliding_window_view(windows, FRAME, axis=1)[:, ::STEP]
    levels = np.log(((frames @ _kernels()[:, 0].T) ** 2).mean(axis=1) + 1e-6)
    return np.asarray((levels - levels.mean(axis=1, keepdims=True)) @ _projection(DIMENSIONS), np.float32)


def _kernels() -> NDArray[np.float32]:
    """Cosines and sines of each band, ``[2 * BANDS, 1, FRAME]``."""
    centres = np.geomspace(80, 3500, BANDS) / RATE
    phases = 2 * np.pi * centres[:, None] * np.arange(FRAME)
    both = np.concatenate([np.cos(phases), np.sin(phases)]) * np.hanning(FRAME)
    return both[:, None].astype(np.float32)


def _projection(dimensions: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((2 * BANDS, dimensions)).astype(np.float32)


@contextmanager
def network_in_cache(folder: Path) -> Iterator[Path]:
    """The network in a cache of weights in ``folder``, which the environment names for as long as the context lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTRAFACT_WEIGHTS_DIR", str(folder / "cache"))
        patch.setenv("CONTRAFACT_EMBEDDER_SOURCE", str(folder / "tiny.onnx"))
        patch.setenv("CONTRAFACT_EMBEDDER_SHA256", write_network(folder / "tiny.onnx"))
        yield weights.fetch("embedder")
