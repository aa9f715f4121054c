"""How requests are answered: parameters, probes, cancellation, errors, and which requests share a batch."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
import triton_python_backend_utils as pb_utils
from rvc.chunks import Chunk, Converted, Params
from rvc.engine import Engine
from rvc.voice import Voice

NUMBERS = ("key", "index_rate", "protect")
COUNTS = ("smoothing", "speaker", "seed")


@dataclass
class _Pending:
    """A request that waits for its batch, and where its response goes."""

    index: int
    request: Any
    chunk: Chunk


def answer(requests: Sequence[Any], engine: Engine, find: Callable[[str], Voice], largest: int) -> list[Any]:
    """One response for each request, in order; requests for the same voice are converted together.

    Whether a request was cancelled is asked immediately before its batch.
    """
    responses: list[Any] = [None] * len(requests)
    waiting: dict[str, list[_Pending]] = defaultdict(list)
    for index, request in enumerate(requests):
        try:
            given = json.loads(request.parameters() or "{}")
            audio = _input(request, "audio")
            if audio is None or audio.ndim != 2 or audio.shape[0] != 1:
                raise ValueError("audio must be [1, samples]: one chunk a request")
            if audio.shape[1] == 1:  # a watchdog's question whether this process lives
                responses[index] = _response(Converted(np.zeros(1, np.float32), 0.0, np.zeros(1)), 0)
                continue
            waiting[str(given.get("voice", ""))].append(_Pending(index, request, _chunk(request, given, audio[0])))
        except Exception as error:
            responses[index] = _failure(error)
    for name, pending in waiting.items():
        for start in range(0, len(pending), largest):
            batch = []
            for one in pending[start : start + largest]:
                if one.request.is_cancelled():
                    responses[one.index] = _error("cancelled", pb_utils.TritonError.CANCELLED)
                else:
                    batch.append(one)
            if batch:
                _convert(batch, engine, find, name, responses)
    return responses


def _chunk(request: Any, given: dict[str, Any], audio: Any) -> Chunk:
    values: dict[str, Any] = {name: float(given[name]) for name in NUMBERS if name in given}
    values |= {name: int(given[name]) for name in COUNTS if name in given}
    values |= {"method": str(given.get("method", "")), "exact": str(given.get("exact", "")).lower() in ("1", "true")}
    if not np.isfinite(audio).all():
        raise ValueError("audio contains NaN or infinity")
    f0, phase = _input(request, "f0"), _input(request, "phase")
    return Chunk(
        audio,
        int(given.get("first", 0)),
        0,
        Params(**values),
        float(phase[0, 0]) if phase is not None else 0.0,
        None if f0 is None else f0[0].astype(np.float64),
    )


def _input(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else torch.utils.dlpack.from_dlpack(tensor.to_dlpack()).cpu().numpy()


def _convert(
    batch: list[_Pending], engine: Engine, find: Callable[[str], Voice], name: str, responses: list[Any]
) -> None:
    """Fill in the responses of ``batch``; if it fails as a whole, its requests are tried one by one."""
    try:
        voice = find(name)
        for one, made in zip(batch, engine.convert(voice, [one.chunk for one in batch]), strict=True):
            responses[one.index] = _response(made, voice.rate)
    except Exception as error:
        if len(batch) == 1:
            responses[batch[0].index] = _failure(error)
            return
        for one in batch:
            _convert([one], engine, find, name, responses)


def _response(made: Converted, rate: int) -> Any:
    outputs = {
        "converted": torch.from_numpy(np.ascontiguousarray(made.audio)),
        "sung": torch.from_numpy(made.f0.astype(np.float32)),
        "next_phase": torch.tensor([made.phase], dtype=torch.float64),
        "rate": torch.tensor([rate], dtype=torch.int32),
    }
    # Not Tensor(name, ndarray): with NumPy 2 the array arrives empty, without an error.
    return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack(n, t.unsqueeze(0)) for n, t in outputs.items()])


def _failure(error: Exception) -> Any:
    if isinstance(error, ValueError):
        return _error(str(error), pb_utils.TritonError.INVALID_ARG)
    pb_utils.Logger.log_error(f"rvc: {type(error).__name__}: {error}")
    return _error(f"the chunk could not be converted: {type(error).__name__}", pb_utils.TritonError.INTERNAL)


def _error(text: str, code: Any) -> Any:
    return pb_utils.InferenceResponse([], pb_utils.TritonError(text, code))
