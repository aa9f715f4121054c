"""What a radio chooses, without a database."""

from __future__ import annotations

from uuid import UUID

import numpy as np

from servers.orchestrator.search.query import Found
from servers.orchestrator.search.radio import Candidate, History, chance_of, choose
from tests.orchestrator.sounds import sound

A, B, C, D = (UUID(int=number) for number in range(1, 5))


def candidates(**similarities: float) -> list[Candidate]:
    """Candidates that are as similar as said, each in a direction of its own."""
    return [
        Candidate(Found(UUID(int=number), similarity), sound(**{name: 1}).astype(np.float32), 0.5)
        for number, (name, similarity) in enumerate(similarities.items(), 1)
    ]


def test_without_diversity_the_most_similar_comes() -> None:
    assert choose(candidates(a=0.5, b=0.9, c=0.7), [sound(b=1)], 0.0, set()) == 1


def test_diversity_weighs_what_was_just_played_against_similarity() -> None:
    some, recent = candidates(a=0.5, b=0.9, c=0.7), [sound(b=1)]
    assert choose(some, recent, 0.3, set()) == 2  # 0.7 * 0.7 is more than 0.7 * 0.9 - 0.3 * 1
    assert choose(some, recent, 0.1, set()) == 1


def test_with_all_diversity_similarity_does_not_matter() -> None:
    some = candidates(a=0.9, b=0.1)
    assert choose(some, [sound(a=1, b=0.2)], 1.0, set()) == 1


def test_what_rests_comes_only_if_all_rest() -> None:
    some = candidates(a=0.9, b=0.1)
    assert choose(some, [], 0.0, {A}) == 1
    assert choose(some, [], 0.0, {A, B}) == 0


def test_chance_depends_on_all_and_stays() -> None:
    assert chance_of(A, 1, 0) == chance_of(A, 1, 0)
    assert len({chance_of(A, 1, 0), chance_of(B, 1, 0), chance_of(A, 2, 0), chance_of(A, 1, 1)}) == 4
    assert all(0 <= chance_of(UUID(int=number), 2**64 - 1, 0) < 1 for number in range(100))


def test_history_counts_rounds() -> None:
    assert History.of([]) == History(0, [], [])
    assert History.of([A, B]) == History(0, [], [A, B])
    assert History.of([A, B, C, B, A]) == History(1, [A, B, C], [B, A])
    assert History.of([A, A, A, B]) == History(2, [A], [A, B])
