"""The voice model on Triton, seen as a pool of voices: what is warm in it, and what shall be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np

from servers.inference.keeper import ModelKeeper
from servers.inference.triton import Question, Triton, TritonError

CONTROL_SECONDS = 20.0  # half of it in the queue: a chunk on a slow CPU takes seconds


@dataclass(frozen=True, slots=True)
class VoiceFiles:
    """A voice as the model knows it: where its files are, and what they must be."""

    id: UUID
    weights: str
    index: str

    @property
    def parameters(self) -> dict[str, str]:
        """Of a request that uses the voice."""
        return {"voice": str(self.id), "weights": self.weights, "index": self.index}


class VoiceModel:
    """Control of the pool of voices. Its methods answer within ``CONTROL_SECONDS`` or raise TritonError.

    They wait behind the chunk that the model converts, so a slow one can be DEADLINE_EXCEEDED although all is well.
    """

    def __init__(self, triton: Triton, keeper: ModelKeeper) -> None:
        self._triton = triton
        self._keeper = keeper

    async def report(self) -> dict[str, Any]:
        """The pool's settings, voices, counters and files; see the model's documentation."""
        return await self._control("report")

    async def warm(self, voice: VoiceFiles) -> dict[str, Any]:
        """Begin to load a voice; the report at once."""
        return await self._control("warm", **voice.parameters, interactive=False)

    async def evict(self, voice: UUID) -> dict[str, Any]:
        """Forget a voice and its files; the report after that."""
        return await self._control("evict", voice=str(voice))

    async def configure(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Change settings: any of ``enabled``, ``capacity``, ``idle_seconds``, ``strategy``; the report after that."""
        return await self._control("configure", settings=json.dumps(dict(wanted)))

    async def _control(self, action: str, **parameters: str | bool) -> dict[str, Any]:
        question = Question(
            self._keeper.model,
            "audio",
            np.zeros(1, np.float32),
            "converted",
            others=("report",),
            parameters={"action": action, **parameters},
        )
        answer = await self._triton.infer(
            question, priority=1, timeout=CONTROL_SECONDS / 2, request_id=f"{action} {parameters.get('voice', '')}"
        )
        self._keeper.answered()
        try:
            report: dict[str, Any] = json.loads(answer.others["report"].tobytes())
        except ValueError:
            raise TritonError("INTERNAL", "the pool's report cannot be read") from None
        return report
