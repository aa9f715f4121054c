"""Clients of the CPU engines."""
