"""The separation models that this release knows."""

from __future__ import annotations

# Name to version: the name of its folder in the model repository. Results are named by both, so a change
# of weights or arithmetic that changes results needs a new version.
SEPARATION_MODELS = {"htdemucs": "1"}
