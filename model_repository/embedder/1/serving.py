"""How requests are answered: shapes, probes, cancellation, errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from network import Network, Samples
from torch.utils.dlpack import from_dlpack

MOST = 8  # windows in a request


def answer(requests: Sequence[Any], network: Network) -> list[Any]:
    """One response for each request, in order; a bad one fails alone, and a cancelled one costs nothing more."""
    return [_answer(request, network) for request in requests]


def _answer(request: Any, network: Network) -> Any:
    try:
        windows = from_dlpack(pb_utils.get_input_tensor_by_name(request, "windows")).numpy()[0]
        if windows.shape == (1, 1) or json.loads(request.parameters() or "{}").get("probe"):
            return _response(np.zeros((1, 1), np.float32), network)
        if windows.shape[1] != network.about.window or not 1 <= len(windows) <= MOST:
            expected = f"1 to {MOST} windows of {network.about.window} samples"
            raise ValueError(f"windows must be {expected}; got {list(windows.shape)}")
        vectors = network(windows, request.is_cancelled)
        if vectors is None:
            return _error("cancelled", pb_utils.TritonError.CANCELLED)
        if not np.isfinite(vectors).all():
            raise ValueError("the network's answer to these windows is not finite")
        return _response(vectors, network)
    except ValueError as error:
        return _error(str(error), pb_utils.TritonError.INVALID_ARG)
    except Exception as error:
        pb_utils.Logger.log_error(f"embedder: {type(error).__name__}: {error}")
        return _error(f"the windows could not be embedded: {type(error).__name__}", pb_utils.TritonError.INTERNAL)


def _response(vectors: Samples, network: Network) -> Any:
    about = np.frombuffer(bytearray(network.about.json()), np.uint8)
    # By way of torch: NumPy 2's arrays arrive empty, without an error, and any NumPy array's DLPack ends the process.
    outputs = {"vectors": torch.from_numpy(vectors[np.newaxis]), "about": torch.from_numpy(about[np.newaxis])}
    return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack(name, one) for name, one in outputs.items()])


def _error(text: str, code: Any) -> Any:
    return pb_utils.InferenceResponse([], pb_utils.TritonError(text, code))
