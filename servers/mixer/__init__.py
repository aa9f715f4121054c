"""The mixer engine: sums streams of audio, matches loudness, limits true peaks. Knows no storage and no jobs."""
