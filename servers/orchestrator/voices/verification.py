"""Whether the files of a voice are what they should be: verdicts of child processes, in words for the caller."""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers.media.errors import MediaError
from servers.media.probe import TrackFacts, probe_isolated
from servers.orchestrator.voices.children import ChildFailed, ChildTimeout, ask
from servers.platform.errors import ApiError, invalid
from servers.platform.settings import Settings

MAX_CHILDREN = 2  # verifying needs up to 4 GB
SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 60.0  # of a sample
SAMPLE_SECONDS = 60.0  # to examine it


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the verifier has found: version ("v1", "v2"), frames per second, pitch, speakers, vectors in the index."""

    version: str
    rate: int
    f0: bool
    speakers: int
    vectors: int


@dataclass(frozen=True, slots=True)
class Register:
    """5th, 50th and 95th percentile of a voice's pitch in Hz."""

    low: float
    median: float
    high: float


class Verifier:
    """Examines files, a few at a time."""

    def __init__(self, settings: Settings) -> None:
        self._seconds = settings.voice_verify_seconds
        self._children = asyncio.Semaphore(MAX_CHILDREN)

    async def voice(self, weights: Path, index: Path | None) -> Verdict:
        """The verdict on a voice; INVALID_ARGUMENT with the reason if it is refused."""
        arguments = [str(weights), *(["--index", str(index)] if index else [])]
        try:
            async with self._children:
                answer = await ask("model_repository.rvc.verify", arguments, self._seconds)
        except ChildTimeout:
            raise invalid("VERIFICATION_TIMEOUT", "the voice takes too long to examine", "weights") from None
        except ChildFailed:
            raise _crashed("weights") from None
        return _verdict(answer)

    async def sample(self, path: Path) -> TrackFacts:
        """What a sample is; INVALID_ARGUMENT if it is no audio of 1 to 60 seconds."""
        try:
            async with self._children:
                facts = await probe_isolated(path, max_seconds=LONGEST_SECONDS, timeout=SAMPLE_SECONDS)
        except MediaError as error:
            raise invalid(error.reason, str(error), "sample") from error
        if facts.frames < SHORTEST_SECONDS * facts.sample_rate:
            raise invalid("TOO_SHORT", f"the sample is shorter than {SHORTEST_SECONDS:g} s", "sample")
        return facts

    async def register(self, path: Path) -> Register | None:
        """The register of the voice in a sample; None if there is too little voice in it."""
        try:
            async with self._children:
                answer = await ask("servers.orchestrator.voices.register", [str(path)], SAMPLE_SECONDS)
        except (ChildFailed, ChildTimeout):
            raise _crashed("sample") from None
        if answer is None:
            return None
        try:
            low, median, high = (float(hertz) for hertz in answer)
        except (TypeError, ValueError):
            raise _crashed("sample") from None
        return check_register(low, median, high, "sample")


def check_register(low: float, median: float, high: float, field: str) -> Register:
    """The register that a caller gave; INVALID_ARGUMENT if its parts are not in order."""
    if not (math.isfinite(low) and math.isfinite(high) and low <= median <= high):
        raise invalid("INVALID_FIELD", "low_hz, median_hz and high_hz must be in this order", field)
    return Register(low, median, high)


def _crashed(field: str) -> ApiError:
    return invalid("VERIFICATION_CRASHED", f"examining the {field} failed; probably they are damaged", field)


def _verdict(answer: Any) -> Verdict:
    """The verifier's answer, believed only as far as a process that a file may have taken over can be."""
    try:
        if answer["ok"] is True:
            numbers = (int(answer[name]) for name in ("speakers", "vectors"))
            return Verdict(str(answer["version"]), int(answer["rate"]), bool(answer["f0"]), *numbers)
        reason, message = re.fullmatch(r"[A-Z_]{1,40}", answer["reason"]), str(answer["message"])[:300]
    except (KeyError, TypeError, ValueError):
        raise _crashed("weights") from None
    if reason is None:
        raise _crashed("weights")
    # The verifier's sentences about the index begin so.
    about_index = reason[0] == "NOT_AN_INDEX" or message.startswith("the index")
    raise invalid(reason[0], message, "index" if about_index else "weights")
