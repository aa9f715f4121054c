"""Beats of an onset strength of which they are known."""

from __future__ import annotations

import numpy as np

from servers.analyzer import beats
from servers.analyzer.analysis import warm_up
from servers.analyzer.beats import track_beats


def test_beats_follow_a_tempo_that_changes() -> None:
    """Every third of them is missing, and between them there is noise."""
    gaps = np.round(np.linspace(16, 30, 60))
    at = np.cumsum(gaps).astype(int) - 8
    strength = np.random.default_rng(0).random(at[-1] + 20) * 0.2
    strength[np.delete(at, slice(2, -1, 3))] = 1
    found = track_beats(strength, np.interp(np.arange(len(strength)), at, gaps))
    assert len(found) == len(at)
    assert np.abs(found - at).max() < 2.5
    assert np.median(np.abs(found - at)) < 0.5


def test_beats_need_an_onset() -> None:
    assert len(track_beats(np.zeros(500), np.full(500, 20.0))) <= 1


def test_the_first_analysis_compiles_nothing() -> None:
    warm_up()
    before = list(beats._scores.signatures)
    track_beats(np.random.default_rng(0).random(900), np.full(900, 20.0))
    assert beats._scores.signatures == before
