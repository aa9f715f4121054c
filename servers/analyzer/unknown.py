"""What cannot be told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unknown:
    """Instead of a feature that could not be told.

    Attributes:
        reason: UPPER_SNAKE_CASE: one of those of the proto message ``UnknownFeature``.
        message: a sentence for people.
    """

    reason: str
    message: str
