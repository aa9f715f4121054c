"""What a network is: it is written into the ONNX file, as metadata, so that file and facts cannot get separated."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

PREFIX = "contrafact."
DIMENSIONS = 512  # most that can be searched
LIMITS = {"sample_rate": (8000, 48_000), "window": (1, 30), "hop": (1, 30)}  # the last two in seconds


@dataclass(frozen=True)
class About:
    """What clients must know.

    Attributes:
        name: with its version, as "clap-htsat-1": vectors of different names are never compared.
        sample_rate: of the windows, in Hz: 8,000 to 48,000.
        window: samples, 1 to 30 s.
        hop: samples from the beginning of one window to that of the next: at least 1 s, at most ``window``.
        dimensions: of a vector: at most 512.
    """

    name: str
    sample_rate: int
    window: int
    hop: int
    dimensions: int = 0

    def json(self) -> bytes:
        """As the model answers it."""
        return json.dumps(asdict(self)).encode()


def read(file: Path) -> About:
    """What ``file`` says of itself; its dimensions are not known yet.

    Raises:
        ValueError: it is no ONNX file, or something is missing or out of range; the text says what.
    """
    try:
        network = onnx.load(str(file), load_external_data=False)
    except Exception as error:  # protobuf's own, whose class depends on its implementation
        raise ValueError(f"{file} is not a readable ONNX file: {type(error).__name__}") from None
    told = {entry.key.removeprefix(PREFIX): entry.value for entry in network.metadata_props}
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}-[0-9]+", told.get("name", "")):
        raise ValueError(f"the network's metadata {PREFIX}name must be lower case and end in a version, as in clap-1")
    numbers = {}
    for key in LIMITS:
        if not told.get(key, "").isdecimal():
            raise ValueError(f"the network's metadata {PREFIX}{key} must be a whole number")
        numbers[key] = int(told[key])
    rate = numbers["sample_rate"]
    for key, (low, high) in LIMITS.items():
        unit = 1 if key == "sample_rate" else rate
        if not low * unit <= numbers[key] <= high * unit:
            raise ValueError(f"the network's {key} is {numbers[key]}, not {low * unit} to {high * unit}")
    if numbers["hop"] > numbers["window"]:
        raise ValueError("the network's hop is longer than its window")
    return About(told["name"], **numbers)
