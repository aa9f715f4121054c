"""An order of tracks in which tempo and key change as little as possible from one to the next.

Nearest neighbours, then 2-opt (Croes 1958) and or-opt (Or 1976) until neither finds anything better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STEP_PERCENT = 3.0  # by how much tempo may change instead of one step on the Camelot wheel
UNKNOWN_PERCENT = 8.0  # a tempo that is unknown is taken to change by so much,
UNKNOWN_STEPS = 3.0  # and a key by so much: about what strangers differ by
STARTS = 8  # tracks from which nearest neighbours are tried
SWEEPS = 30  # at most; more have not been seen to be needed
_LONGEST_MOVED = 3  # tracks that or-opt moves together
_GAIN = 1e-6  # less is rounding

Costs = NDArray[np.float64]


@dataclass(frozen=True)
class Tune:
    """Tempo in beats a minute and place on the Camelot wheel (as ``camelot.position``), if known."""

    bpm: float | None
    key: int | None


def tempo_change(before: Tune, after: Tune) -> float | None:
    """By how many percent ``after`` must change to match the tempo before it, or half or double that."""
    if before.bpm is None or after.bpm is None:
        return None
    changes = (100 * (before.bpm * octave / after.bpm - 1) for octave in (1.0, 0.5, 2.0))
    return min(changes, key=abs)


def key_steps(before: Tune, after: Tune) -> int | None:
    """Steps on the Camelot wheel: along the circle, and one for the other letter."""
    if before.key is None or after.key is None:
        return None
    apart = abs(before.key // 2 - after.key // 2)
    return min(apart, 12 - apart) + (before.key % 2 != after.key % 2)


def costs_of(tunes: Sequence[Tune]) -> Costs:
    """What it costs that one follows the other, in percent of tempo [n, n]; the same in both directions."""
    bpm = np.array([tune.bpm or np.nan for tune in tunes])
    octaves = np.abs(np.log2(bpm[:, None] / bpm))
    octaves = np.minimum(octaves, np.abs(octaves - 1))
    percent = np.where(np.isnan(octaves), UNKNOWN_PERCENT, 100 * (np.exp2(octaves) - 1))
    key = np.array([np.nan if tune.key is None else tune.key for tune in tunes])
    apart = np.abs(key[:, None] // 2 - key // 2)
    steps = np.minimum(apart, 12 - apart) + (key[:, None] % 2 != key % 2)
    return np.asarray(percent + STEP_PERCENT * np.where(np.isnan(steps), UNKNOWN_STEPS, steps))


def order(tunes: Sequence[Tune], first: int | None = None) -> list[int]:
    """Numbers of ``tunes`` in an order that costs little; the same for the same tunes.

    Args:
        tunes: at most some thousand: time and memory grow with their square.
        first: number of the one that comes first; None: whichever is best.
    """
    count = len(tunes)
    costs = np.zeros((count + 1, count + 1))  # the last is a place that is next to all: both ends are open
    costs[:count, :count] = costs_of(tunes)
    starts = [first] if first is not None else sorted({count * number // STARTS for number in range(STARTS)})
    begin = count if first is None else first
    paths = (_nearest(costs, start) for start in starts[: max(1, count)])
    path = min(paths, key=lambda found: _length(costs, found))
    closed = np.array([begin, *path[first is not None :], count])
    for _ in range(SWEEPS):
        if not _two_opt(costs, closed) + _or_opt(costs, closed):
            break
    return [int(number) for number in closed[:-1] if number != count]


def _length(costs: Costs, path: NDArray[np.int64]) -> float:
    return float(costs[path[:-1], path[1:]].sum())


def _nearest(costs: Costs, start: int) -> NDArray[np.int64]:
    """Always on to the nearest that is left."""
    taken = np.zeros(len(costs))
    taken[-1] = np.inf
    path = [start]
    for _ in range(len(costs) - 2):
        taken[path[-1]] = np.inf
        path.append(int(np.argmin(costs[path[-1]] + taken)))
    return np.array(path)


def _two_opt(costs: Costs, path: NDArray[np.int64]) -> int:
    """Turn stretches round where that shortens the path; how many were."""
    turned = 0
    for begin in range(1, len(path) - 1):
        before, own = path[begin - 1], path[begin]
        ends, after = path[begin:-1], path[begin + 1 :]
        gains = costs[before, own] + costs[ends, after] - costs[before, ends] - costs[own, after]
        best = int(np.argmax(gains))
        if gains[best] > _GAIN:
            path[begin : begin + best + 1] = path[begin : begin + best + 1][::-1].copy()
            turned += 1
    return turned


def _or_opt(costs: Costs, path: NDArray[np.int64]) -> int:
    """Move up to three neighbours elsewhere, either way round, where that shortens the path; how often that was."""
    moved = 0
    for length in range(1, _LONGEST_MOVED + 1):
        for begin in range(1, len(path) - length):
            part = path[begin : begin + length]
            before, after = path[begin - 1], path[begin + length]
            saved = costs[before, part[0]] + costs[part[-1], after] - costs[before, after]
            if saved <= _GAIN:
                continue
            rest = np.concatenate((path[:begin], path[begin + length :]))
            left, right = rest[:-1], rest[1:]
            ways = np.stack(
                (costs[left, part[0]] + costs[part[-1], right], costs[left, part[-1]] + costs[part[0], right])
            )
            added = ways - costs[left, right]
            way, place = divmod(int(np.argmin(added)), len(left))
            if saved - added[way, place] > _GAIN:
                placed = part[::-1] if way else part
                path[:] = np.concatenate((rest[: place + 1], placed, rest[place + 1 :]))
                moved += 1
    return moved
