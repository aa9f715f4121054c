"""Projects: tracks prepared for mixing."""
