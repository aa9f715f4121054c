"""The analyzer's version and its own model of embeddings, which the orchestrator knows, too."""

from __future__ import annotations

ANALYZER = "1"
"""A whole number. Raise it when results change: older analyses are then made anew when somebody asks for them."""

EMBEDDINGS = "contrafact-signal-1"
"""What makes the analyzer's embeddings; those of other models are made elsewhere."""
