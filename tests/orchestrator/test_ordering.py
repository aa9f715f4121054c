"""Orders of tracks against the best there is, and what their parts measure."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from servers.orchestrator.search.camelot import code, neighbours, position
from servers.orchestrator.search.ordering import Tune, costs_of, key_steps, order, tempo_change


def random_tunes(count: int, seed: int) -> list[Tune]:
    """Tunes of which one in twenty has no tempo, and one in twenty no key."""
    random = np.random.default_rng(seed)
    return [
        Tune(
            None if random.random() < 0.05 else float(random.uniform(60, 190)),
            None if random.random() < 0.05 else int(random.integers(2, 26)),
        )
        for _ in range(count)
    ]


def length(tunes: list[Tune], path: list[int]) -> float:
    costs = costs_of(tunes)
    return float(costs[path[:-1], path[1:]].sum())


def test_camelot_codes() -> None:
    assert [code(position(f"{number}{letter}")) for number in range(1, 13) for letter in "AB"] == [
        f"{number}{letter}" for number in range(1, 13) for letter in "AB"
    ]
    assert (position("1A"), position("12B")) == (2, 25)


@pytest.mark.parametrize(
    ("given", "found"),
    [("8A", "7A 8A 9A 8B"), ("12B", "11B 12B 1B 12A"), ("1A", "12A 1A 2A 1B")],
)
def test_neighbours_on_the_wheel(given: str, found: str) -> None:
    assert {code(at) for at in neighbours([position(given)])} == set(found.split())


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [(120, 120, 0), (120, 125, -4), (120, 60, 0), (62, 120, 100 * (124 / 120 - 1)), (180, 88, 100 * (90 / 88 - 1))],
)
def test_tempo_changes_allow_half_and_double(before: float, after: float, change: float) -> None:
    assert tempo_change(Tune(before, None), Tune(after, None)) == pytest.approx(change)
    assert tempo_change(Tune(None, 2), Tune(after, 2)) is None


@pytest.mark.parametrize(
    ("before", "after", "steps"), [("8A", "8A", 0), ("8A", "8B", 1), ("12A", "1A", 1), ("3A", "9B", 7)]
)
def test_key_steps(before: str, after: str, steps: int) -> None:
    assert key_steps(Tune(100, position(before)), Tune(100, position(after))) == steps
    assert key_steps(Tune(100, position(before)), Tune(100, None)) is None


@pytest.mark.parametrize("count", range(1, 8))
def test_near_the_best_of_all_orders(count: int) -> None:
    ratios = []
    for seed in range(12):
        tunes = random_tunes(count, seed)
        for first in (None, seed % count):
            path = order(tunes, first)
            assert sorted(path) == list(range(count))
            assert first is None or path[0] == first
            best = min(
                length(tunes, list(way))
                for way in itertools.permutations(range(count))
                if first is None or way[0] == first
            )
            ratios.append((length(tunes, path) + 1e-9) / (best + 1e-9))
    assert max(ratios) < 1.1
    assert np.mean(ratios) < 1.01


def test_much_better_than_as_they_come_and_always_the_same() -> None:
    tunes = random_tunes(300, 1)
    path = order(tunes)
    assert length(tunes, path) < 0.2 * length(tunes, list(range(300)))
    assert order(tunes) == path


def test_a_smooth_path_is_found() -> None:
    smooth = [Tune(100 + number, position(f"{1 + number // 5}A")) for number in range(40)]
    shuffled = [smooth[number] for number in np.random.default_rng(2).permutation(40)]
    assert length(shuffled, order(shuffled)) <= length(smooth, list(range(40))) + 1e-6


def test_tunes_of_which_nothing_is_known() -> None:
    assert sorted(order([Tune(None, None)] * 5, first=3)) == [0, 1, 2, 3, 4]
