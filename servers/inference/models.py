"""The models that this release knows."""

from __future__ import annotations

# Name to version: the name of its folder in the model repository. Results are named by both, so a change
# of weights or arithmetic that changes results needs a new version.
SEPARATION_MODELS = {"htdemucs": "1"}
VOICE_MODELS = {"rvc": "1"}
EMBEDDER = "embedder"  # its results are named by the network in it


def versioned(model: str) -> str:
    """The name of a separation model with its version, by which results are named, as in ``htdemucs-1``."""
    return f"{model}-{SEPARATION_MODELS[model]}"


# Input and its shape, of a question that a model answers without computing anything: whether its process lives.
_SEPARATION_PROBE = ("mix", (2, 1))
_VOICE_PROBE = ("audio", (1,))
_EMBEDDER_PROBE = ("windows", (1, 1))


def probe_of(model: str) -> tuple[str, tuple[int, ...]]:
    """Name and shape, without the batch axis, of the input that ``model`` takes for a probe."""
    if model == EMBEDDER:
        return _EMBEDDER_PROBE
    return _VOICE_PROBE if model in VOICE_MODELS else _SEPARATION_PROBE
