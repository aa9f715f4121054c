"""The analyzer engine: what a recording sounds like."""
