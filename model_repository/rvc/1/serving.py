"""How requests are answered: actions, probes, cancellation, errors, and which requests share a batch."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.utils.dlpack
import triton_python_backend_utils as pb_utils
from rvc.chunks import HOP, RATE, Audio, Chunk, Converted, Params
from rvc.files import Files
from rvc.live import LiveChunk
from rvc.loader import Key, VoiceError, check_name
from rvc.pitch import F0
from rvc.pool import Pool

NUMBERS = ("key", "index_rate", "protect")
COUNTS = ("smoothing", "speaker", "seed")
PLACES = ("first", "skip", "length", "advance")  # frames, of a live window
PITCH_SECONDS = 60


class Work(Protocol):
    """The neural parts.

    Attributes:
        methods: of pitch, the preferred one first.
    """

    methods: Sequence[str]

    def convert(self, voice: Any, chunks: Sequence[Chunk]) -> list[Converted]:
        """As `rvc.engine.Engine.convert`."""
        ...

    def live(self, voice: Any, chunks: Sequence[LiveChunk]) -> list[Converted]:
        """As `rvc.engine.Engine.live`; the chunks have the same number of samples, skip and length."""
        ...

    def pitch(self, audio: Audio, method: str) -> F0:
        """f0 in Hz of 16 kHz audio (n,): (n // 160 + 1,)."""
        ...


@dataclass
class _Pending:
    """A request that waits for its batch, and where its response goes."""

    place: int
    request: Any
    chunk: Chunk | LiveChunk
    interactive: bool


Group = tuple[Key, tuple[int, ...]]  # voice and, for live windows, samples, skip and length


class Serving:
    """Answers requests.

    Args:
        work: the neural parts.
        pool, files: of voices.
        largest: most chunks converted at once.
        device: of the networks; if it is a GPU, probes ask it too.
    """

    def __init__(self, work: Work, pool: Pool[Any], files: Files, largest: int, device: str = "cpu") -> None:
        self._work, self._pool, self._files, self._largest = work, pool, files, largest
        self._pulse = torch.zeros(1, device=device) if device.startswith("cuda") else None

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in order.

        Control requests are answered first. Chunks of the same voice are converted together, live windows if they are
        also alike. Whether a request was cancelled is asked immediately before its batch.
        """
        responses: list[Any] = [None] * len(requests)
        waiting: dict[Group, list[_Pending]] = defaultdict(list)
        for place, request in enumerate(requests):
            try:
                given = json.loads(request.parameters() or "{}")
                audio, action = _audio(request), str(given.get("action", ""))
                if action in self._CONTROLS:
                    responses[place] = self._CONTROLS[action](self, given, audio)
                elif action not in ("", "live"):
                    raise ValueError(f"action {action!r:.80} is none of: live, {', '.join(self._CONTROLS)}, or none")
                elif action == "" and len(audio) == 1:  # a watchdog's question whether this process lives
                    responses[place] = self._probe()
                else:
                    group, chunk = _chunk(request, given, audio, action == "live")
                    waiting[group].append(_Pending(place, request, chunk, _flag(given, "interactive")))
            except Exception as error:
                responses[place] = _failure(error)
        for group, pending in waiting.items():
            for start in range(0, len(pending), self._largest):
                self._batch(group, pending[start : start + self._largest], responses)
        return responses

    def _batch(self, group: Group, pending: list[_Pending], responses: list[Any]) -> None:
        batch = []
        for one in pending:
            if one.request.is_cancelled():
                responses[one.place] = _error("cancelled", pb_utils.TritonError.CANCELLED)
            else:
                batch.append(one)
        if not batch:
            return
        try:
            voice = self._pool.get(group[0], len(batch), any(one.interactive for one in batch))
        except Exception as error:
            for one in batch:
                responses[one.place] = _failure(error)
            return
        self._convert(voice, self._work.live if group[1] else self._work.convert, batch, responses)

    def _convert(
        self, voice: Any, convert: Callable[..., list[Converted]], batch: list[_Pending], responses: list[Any]
    ) -> None:
        """Fill in the responses of ``batch``; if it fails as a whole, its requests are tried one by one."""
        try:
            for one, made in zip(batch, convert(voice, [one.chunk for one in batch]), strict=True):
                responses[one.place] = _converted(made, voice.rate)
        except Exception as error:
            if len(batch) == 1:
                responses[batch[0].place] = _failure(error)
                return
            for one in batch:
                self._convert(voice, convert, [one], responses)

    def _probe(self) -> Any:
        if self._pulse is not None:
            try:
                self._pulse.add_(1).item()
            except RuntimeError as error:
                # A broken CUDA context never mends. Whoever watches sees this process end, and loads the model anew.
                pb_utils.Logger.log_error(f"rvc: the GPU does not answer: {error}")
                os._exit(1)
        return _response()

    def _warm(self, given: Mapping[str, Any], audio: Audio) -> Any:
        self._pool.warm(_key(given), _flag(given, "interactive"))
        return self._report(given, audio)

    def _evict(self, given: Mapping[str, Any], audio: Audio) -> Any:
        voice = str(given.get("voice", ""))
        check_name(voice)
        self._pool.evict(voice)
        self._files.remove(voice)
        return self._report(given, audio)

    def _configure(self, given: Mapping[str, Any], audio: Audio) -> Any:
        changes = json.loads(str(given.get("settings", "")) or "{}")
        if not isinstance(changes, dict):
            raise ValueError("settings must be a JSON object")
        self._pool.configure(changes)
        return self._report(given, audio)

    def _report(self, given: Mapping[str, Any], audio: Audio) -> Any:
        report = {**self._pool.report(), "disk": self._files.report(), "methods": list(self._work.methods)}
        return _response(report=torch.frombuffer(bytearray(json.dumps(report).encode()), dtype=torch.uint8))

    def _pitch(self, given: Mapping[str, Any], audio: Audio) -> Any:
        method = str(given.get("method", "")) or self._work.methods[0]
        if method not in self._work.methods:
            known = ", ".join(self._work.methods)
            raise ValueError(f"pitch method {method!r:.80} is not available here; there are: {known}")
        if len(audio) > PITCH_SECONDS * RATE:
            raise ValueError(f"pitch is estimated of at most {PITCH_SECONDS} s, not {len(audio)} samples at 16 kHz")
        heard = np.pad(audio, (0, max(RATE - len(audio), 0)))  # estimators need some context
        f0 = self._work.pitch(heard, method)[: -(-len(audio) // HOP)]
        return _response(sung=torch.from_numpy(f0.astype(np.float32)))

    _CONTROLS: ClassVar[dict[str, Callable[[Serving, Mapping[str, Any], Audio], Any]]] = {
        "warm": _warm,
        "evict": _evict,
        "report": _report,
        "configure": _configure,
        "pitch": _pitch,
    }


def _key(given: Mapping[str, Any]) -> Key:
    return Key(*(str(given.get(name, "")) for name in ("voice", "weights", "index")))


def _flag(given: Mapping[str, Any], name: str) -> bool:
    return str(given.get(name, "")).lower() in ("1", "true")


def _chunk(request: Any, given: Mapping[str, Any], audio: Audio, live: bool) -> tuple[Group, Chunk | LiveChunk]:
    values: dict[str, Any] = {name: float(given[name]) for name in NUMBERS if name in given}
    values |= {name: int(given[name]) for name in COUNTS if name in given}
    values |= {"method": str(given.get("method", "")), "exact": _flag(given, "exact")}
    params, key = Params(**values), _key(given)
    f0, phase = _input(request, "f0"), _input(request, "phase")
    pitch = None if f0 is None else f0[0].astype(np.float64)
    turned = float(phase[0, 0]) if phase is not None else 0.0
    if not live:
        return (key, ()), Chunk(audio, int(given.get("first", 0)), 0, params, turned, pitch)
    if missing := [name for name in PLACES if name not in given]:
        raise ValueError(f"a live window needs the parameters {', '.join(missing)}")
    places = {name: int(given[name]) for name in PLACES}
    chunk = LiveChunk(audio=audio, params=params, phase=turned, f0=pitch, **places)
    return (key, (len(audio), chunk.skip, chunk.length)), chunk


def _audio(request: Any) -> Audio:
    audio = _input(request, "audio")
    if audio is None or audio.ndim != 2 or audio.shape[0] != 1 or audio.shape[1] == 0:
        raise ValueError("audio must be [1, samples]: one chunk a request")
    if not np.isfinite(audio).all():
        raise ValueError("audio contains NaN or infinity")
    samples: Audio = audio[0]
    return samples


def _input(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else torch.utils.dlpack.from_dlpack(tensor.to_dlpack()).cpu().numpy()


def _converted(made: Converted, rate: int) -> Any:
    return _response(
        converted=torch.from_numpy(np.ascontiguousarray(made.audio)),
        sung=torch.from_numpy(made.f0.astype(np.float32)),
        next_phase=torch.tensor([made.phase], dtype=torch.float64),
        rate=torch.tensor([rate], dtype=torch.int32),
    )


def _response(**outputs: torch.Tensor) -> Any:
    """What was not asked for is one zero, so that clients need not know which actions answer with what."""
    nothing = {
        "converted": torch.zeros(1),
        "sung": torch.zeros(1),
        "next_phase": torch.zeros(1, dtype=torch.float64),
        "rate": torch.zeros(1, dtype=torch.int32),
    }
    # Not Tensor(name, ndarray): with NumPy 2 the array arrives empty, without an error.
    tensors = [pb_utils.Tensor.from_dlpack(name, t.unsqueeze(0)) for name, t in (nothing | outputs).items()]
    return pb_utils.InferenceResponse(tensors)


def _failure(error: Exception) -> Any:
    if isinstance(error, VoiceError):
        return _error(f"{error.word}: {error}", getattr(pb_utils.TritonError, error.status))
    if isinstance(error, ValueError):
        return _error(str(error), pb_utils.TritonError.INVALID_ARG)
    pb_utils.Logger.log_error(f"rvc: {type(error).__name__}: {error}")
    return _error(f"the request could not be answered: {type(error).__name__}", pb_utils.TritonError.INTERNAL)


def _error(text: str, code: Any) -> Any:
    return pb_utils.InferenceResponse([], pb_utils.TritonError(text, code))
