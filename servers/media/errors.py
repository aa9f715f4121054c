"""What can be wrong with a file. Messages are for clients: they never contain names or paths."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Machine-readable causes, sent to clients as ``google.rpc.ErrorInfo.reason``."""

    EMPTY_FILE = "EMPTY_FILE"
    NOT_AUDIO = "NOT_AUDIO"
    UNSUPPORTED_CONTAINER = "UNSUPPORTED_CONTAINER"
    UNSUPPORTED_CODEC = "UNSUPPORTED_CODEC"
    UNSUPPORTED_SAMPLE_RATE = "UNSUPPORTED_SAMPLE_RATE"
    TOO_MANY_CHANNELS = "TOO_MANY_CHANNELS"
    NO_AUDIO_STREAM = "NO_AUDIO_STREAM"
    NO_FRAMES = "NO_FRAMES"
    ENCRYPTED = "ENCRYPTED"
    TRUNCATED = "TRUNCATED"
    CORRUPT = "CORRUPT"
    NON_FINITE_AUDIO = "NON_FINITE_AUDIO"
    TOO_LONG = "TOO_LONG"
    PROBE_TIMEOUT = "PROBE_TIMEOUT"
    PROBE_CRASHED = "PROBE_CRASHED"


class MediaError(Exception):
    """A file cannot be used as audio.

    Attributes:
        reason: a :class:`Reason` (an UPPER_SNAKE ``str``).
        message: one English sentence that is safe to show to clients.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type[MediaError], tuple[Reason, str]]:
        # The default rebuilds from ``args`` alone, which lacks the reason.
        return type(self), (self.reason, self.message)
