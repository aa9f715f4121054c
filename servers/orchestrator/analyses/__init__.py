"""Analyses of recordings: kept, cached, and known in part while they are made."""
