"""Measurements: each prints ratios of two sides run in turn on the same machine, and keeps them as JSON.

python -m tests.bench [NAME …]
"""
