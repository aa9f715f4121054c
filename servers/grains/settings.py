"""How a stem is played with grains, with every default written down."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from contrafact.v1 import grain_pb2


class Shape(StrEnum):
    """How the level of a grain changes while it is played: those of the proto, or only a short fade at its end."""

    EXPONENTIAL = "EXPONENTIAL"
    LINEAR = "LINEAR"
    HANN = "HANN"
    ADSR = "ADSR"
    NONE = "NONE"


@dataclass(frozen=True, slots=True)
class Playing:
    """``GrainSettings``, complete: what it says of each of its fields goes here, too.

    Attributes:
        seconds: how long a grain is played at most.
        shift: whether grains are shifted to the pitch of the note.
        level_weight, brightness_weight, duration_weight: octaves of pitch for each factor of two.
    """

    seconds: float
    pitch_mapping: bool
    shape: Shape
    follow_level: bool
    shift: bool
    density: float
    stretch: float
    spread: float
    variation: float
    allow_repeats: bool
    level_weight: float
    brightness_weight: float
    duration_weight: float
    seed: int


def completed(settings: grain_pb2.GrainSettings) -> grain_pb2.GrainSettings:
    """The same settings, with the server's default in each field that was not given. ``settings`` stays as it is."""
    complete = grain_pb2.GrainSettings(
        grain_duration_ms=120.0,
        use_pitch_mapping=True,
        use_envelope=True,
        envelope=grain_pb2.ENVELOPE_EXPONENTIAL,
        follow_level=True,
        density=1.0,
        stretch=1.0,
    )
    complete.MergeFrom(settings)
    return complete


def playing(settings: grain_pb2.GrainSettings) -> Playing:
    """Settings as the engine has them; fields that were not given have their defaults."""
    complete = completed(settings)
    envelope = grain_pb2.Envelope.Name(complete.envelope).removeprefix("ENVELOPE_")
    return Playing(
        seconds=complete.grain_duration_ms / 1000,
        pitch_mapping=complete.use_pitch_mapping,
        shape=Shape(envelope) if complete.use_envelope else Shape.NONE,
        follow_level=complete.follow_level,
        shift=complete.shift_pitch,
        density=complete.density,
        stretch=complete.stretch,
        spread=complete.spread,
        variation=complete.variation,
        allow_repeats=complete.allow_repeats,
        level_weight=complete.level_weight,
        brightness_weight=complete.brightness_weight,
        duration_weight=complete.duration_weight,
        seed=complete.seed,
    )
