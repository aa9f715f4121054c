"""Analyses of whole libraries: what is to be analysed, and the jobs that do it, a few at a time."""
