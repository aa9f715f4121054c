"""The analyzer's version, which the orchestrator knows, too."""

from __future__ import annotations

ANALYZER = "1"
"""A whole number. Raise it when results change: older analyses are then made anew when somebody asks for them."""
