"""Mixes: how they are configured, and what they are made of."""
