"""AnalyzerService: messages in, messages out."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
from contrafact.engine.v1 import analyzer_pb2_grpc
from contrafact.engine.v1.analyzer_pb2 import AnalyzeRequest, AnalyzeResponse

from servers.analyzer.running import Running
from servers.platform.errors import ApiError, invalid
from servers.platform.interceptors import Context
from servers.platform.slots import BACKGROUND
from servers.platform.turns import Turns

MAX_ANALYSES = 32
"""At once. Each may hold 34 MB of mono audio when a person waits, 4 MB when nobody does, and what its features keep."""
MAX_BACKGROUND = 24
"""Of these, so that a person is not refused because of a scan."""


class AnalyzerService(analyzer_pb2_grpc.AnalyzerServiceServicer):
    """The service. It keeps nothing between calls.

    Args:
        turns: to make steps of analyses.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._analyses: Counter[int] = Counter()

    async def Analyze(
        self, requests: AsyncIterator[AnalyzeRequest], context: Context
    ) -> AsyncIterator[AnalyzeResponse]:
        """Analyze: see the proto."""
        first = await anext(requests, None)
        if first is None or not first.HasField("spec"):
            raise invalid("SPEC_MISSING", "the first message must be the spec")
        priority = first.spec.priority or BACKGROUND
        if self._is_full(priority):
            message = f"this server makes {MAX_ANALYSES} analyses at once, {MAX_BACKGROUND} of them in the background"
            raise ApiError(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_ANALYSES", message, retry_after=1)
        self._analyses[priority] += 1
        try:
            async with aclosing(Running(first.spec, priority, self._turns).responses(requests)) as responses:
                async for response in responses:
                    yield response
        finally:
            self._analyses[priority] -= 1

    def _is_full(self, priority: int) -> bool:
        background = self._analyses[BACKGROUND]
        return self._analyses.total() >= MAX_ANALYSES or (priority == BACKGROUND and background >= MAX_BACKGROUND)
