"""How requests are answered, whatever computes the stems: shapes, probes, cancellation, errors.

Imported by model.py inside Triton's Python stub (which alone has ``triton_python_backend_utils``), and by the fake
model of the tests, so that both behave alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.dlpack
import triton_python_backend_utils as pb_utils

SEGMENT = 343_980
STEMS = 4
# [batch, 2, SEGMENT] -> [batch, 4, 2, SEGMENT], or None if what is asked meanwhile said that nobody wants that any more
Separate = Callable[[torch.Tensor, Callable[[], bool]], torch.Tensor | None]


@dataclass
class _Pending:
    """A request that waits for the network, and where its response goes."""

    index: int
    request: Any
    mix: torch.Tensor


def answer(requests: Sequence[Any], separate: Separate, largest: int) -> list[Any]:
    """One response for each request, in order; a bad request or a failed segment fails alone.

    At most ``largest`` requests are computed at once. Whether a request was cancelled is asked immediately before
    its computation, so cancelled work costs nothing beyond the batch that is running; and ``separate`` may ask, while
    it computes, whether all of its batch was, and stop.
    """
    responses: list[Any] = [None] * len(requests)
    pending: list[_Pending] = []
    for index, request in enumerate(requests):
        try:
            mix = torch.utils.dlpack.from_dlpack(pb_utils.get_input_tensor_by_name(request, "mix"))
            if _is_probe(request, mix):
                responses[index] = _stems(torch.zeros(mix.shape[0], STEMS, 2, 1))
            else:
                _check(mix)
                pending.append(_Pending(index, request, mix))
        except Exception as error:
            responses[index] = _failure(error)
    for start in range(0, len(pending), largest):
        batch = []
        for one in pending[start : start + largest]:
            if one.request.is_cancelled():
                responses[one.index] = _cancelled()
            else:
                batch.append(one)
        if batch:
            _compute(batch, separate, responses)
    return responses


def _compute(batch: list[_Pending], separate: Separate, responses: list[Any]) -> None:
    """Fill in the responses of ``batch``; if it fails as a whole (memory), its requests are tried one by one."""
    try:
        mix = torch.cat([one.mix for one in batch])
        stems = separate(mix, lambda: all(one.request.is_cancelled() for one in batch))
        if stems is None:
            for one in batch:
                responses[one.index] = _cancelled()
            return
        parts = torch.split(stems, [one.mix.shape[0] for one in batch])
        for one, part in zip(batch, parts, strict=True):
            responses[one.index] = _stems(part)
    except Exception as error:
        if len(batch) == 1:
            responses[batch[0].index] = _failure(error)
            return
        for one in batch:
            _compute([one], separate, responses)


def _is_probe(request: Any, mix: torch.Tensor) -> bool:
    """A watchdog's question whether this process is alive: parameter ``probe``, or an input of one frame."""
    return mix.shape[-1] == 1 or bool(json.loads(request.parameters() or "{}").get("probe"))


def _check(mix: torch.Tensor) -> None:
    if mix.shape[1:] != (2, SEGMENT):
        raise ValueError(f"mix must be [batch, 2, {SEGMENT}]: one segment of stereo at 44.1 kHz; got {list(mix.shape)}")


def _stems(stems: torch.Tensor) -> Any:
    # Not Tensor(name, ndarray): with NumPy 2 the array arrives empty, without an error.
    return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("stems", stems.contiguous())])


def _failure(error: Exception) -> Any:
    if isinstance(error, ValueError):
        return _error(str(error), pb_utils.TritonError.INVALID_ARG)
    pb_utils.Logger.log_error(f"htdemucs: {type(error).__name__}: {error}")
    return _error(f"the segment could not be separated: {type(error).__name__}", pb_utils.TritonError.INTERNAL)


def _cancelled() -> Any:
    return _error("cancelled", pb_utils.TritonError.CANCELLED)


def _error(text: str, code: Any) -> Any:
    return pb_utils.InferenceResponse([], pb_utils.TritonError(text, code))
