"""How fast it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from servers.analyzer.beats import bars, track_beats
from servers.analyzer.envelope import FRAMES_PER_SECOND, SILENCE_DB, Envelope
from servers.analyzer.tempogram import GRID, WINDOW, Floats, evidence, signals, starts
from servers.analyzer.unknown import Unknown

MIN_SECONDS = 4.0
MIN_CONFIDENCE = 0.2

_STRENGTH = 0.9  # what mean evidence counts: less than ``fit_tempo`` finds, for songs differ more than its rhythms do
_CHANGE = 1.5  # grid steps by which tempo commonly changes from a window to the next
_FARTHEST = 6  # grid steps by which it changes at most without a break
_BREAK = 8.0  # what a jump to any other tempo costs
_SAME = 3  # grid steps, 3 %, within which a tempo is the same
_STABLE = 0.03  # relative: what of a stable tempo's local values lies within
_SPAN = 8  # beats a local tempo is measured over
_ALTERNATIVES = 3
_SURE = 0.5  # confidence from which beats are given
_GRIP = 0.5
_LATE = 0.028  # seconds by which the tops of the envelope are late, measured on clicks and drums


@dataclass(frozen=True, slots=True)
class TempoCandidate:
    """A tempo that might be meant.

    Attributes:
        bpm: beats a minute.
        strength: its share of the evidence, 0 to 1.
    """

    bpm: float
    strength: float


@dataclass(frozen=True, slots=True)
class Tempo:
    """Tempo, and where the beats are.

    Attributes:
        bpm: beats a minute; where it is not stable, the median.
        confidence: how sure that is, 0 to 1.
        alternatives: other tempi, the likeliest first.
        stable: whether it holds from the beginning to the end.
        min_bpm: lowest local tempo.
        max_bpm: highest local tempo.
        beat_seconds: the beats; empty where they are not reliable.
        beats_per_bar: 3 or 4; 0 where downbeats are not reliable.
        downbeats: indices in ``beat_seconds`` of the beats that begin a bar; empty where they are not reliable.
    """

    bpm: float
    confidence: float
    alternatives: tuple[TempoCandidate, ...]
    stable: bool
    min_bpm: float
    max_bpm: float
    beat_seconds: tuple[float, ...]
    beats_per_bar: int
    downbeats: tuple[int, ...]


def find_tempo(envelope: Envelope) -> Tempo | Unknown:
    """The tempo and the beats of a recording, or ``SILENT``, ``TOO_SHORT`` or ``NO_BEAT``."""
    if envelope.peak_db < SILENCE_DB:
        return Unknown("SILENT", "There is nothing above -70 dBFS.")
    if envelope.seconds < MIN_SECONDS:
        return Unknown("TOO_SHORT", f"It is shorter than {MIN_SECONDS:.0f} s.")
    rows = signals(envelope)
    begins = starts(rows.shape[1])
    scores = evidence(rows, begins)
    path, shares = levels(scores, smoothest(scores))
    if float(shares[_near(int(np.median(path)))].sum()) < MIN_CONFIDENCE:
        return Unknown("NO_BEAT", "There is no regular beat.")
    middles = begins + min(WINDOW, rows.shape[1]) / 2
    tempi = np.interp(np.arange(rows.shape[1]), middles, GRID[path])
    beats = track_beats(pulse(rows), 60 * FRAMES_PER_SECOND / tempi)
    return _told(envelope, beats, path, begins, shares)


def pulse(rows: Floats) -> Floats:
    """What beats are looked for in."""
    summed: Floats = rows[0] + 0.5 * rows[1]
    return summed


def smoothest(scores: Floats) -> NDArray[np.int64]:
    """The course of the tempo with the best evidence ``[windows, tempi]``, as indices of ``GRID``."""
    windows, tempi = scores.shape
    moves = np.arange(-_FARTHEST, _FARTHEST + 1)
    costs = 0.5 * (moves / _CHANGE) ** 2
    total = scores[0].astype(np.float64)
    back = np.zeros((windows, tempi), np.int16)
    sources = np.arange(tempi)[None] - moves[:, None]
    inside = (sources >= 0) & (sources < tempi)
    sources = np.clip(sources, 0, tempi - 1)
    for window in range(1, windows):
        ways = np.where(inside, total[sources] - costs[:, None], -np.inf)
        best = ways.argmax(axis=0)
        value = ways[best, np.arange(tempi)]
        top = int(total.argmax())
        jumps = total[top] - _BREAK > value
        back[window] = np.where(jumps, top, sources[best, np.arange(tempi)])
        total = np.where(jumps, total[top] - _BREAK, value) + scores[window]
    path = np.zeros(windows, np.int64)
    path[-1] = int(total.argmax())
    for window in range(windows - 1, 0, -1):
        path[window - 1] = back[window, path[window]]
    return path


def levels(scores: Floats, path: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
    """The course moved to where it is likeliest as a whole, and how likely each tempo of its middle is."""
    tempi = scores.shape[1]
    centre = int(np.median(path))
    path = _in_octave(path, centre)
    moves = np.arange(tempi) - centre
    places = path[:, None] + moves[None]
    inside = (places >= 0) & (places < tempi)
    values = np.where(inside, scores[np.arange(len(path))[:, None], np.clip(places, 0, tempi - 1)], scores.min())
    mean = _STRENGTH * values.mean(axis=0)
    weights = np.exp(mean - max(float(mean.max()), 0.0))
    shares = weights / (weights.sum() + np.exp(-max(float(mean.max()), 0.0)))
    near = np.convolve(shares, np.ones(2 * _SAME + 1), "same")
    best = int(np.where(near >= near.max() - 1e-9, shares, 0).argmax())
    return np.clip(path + best - centre, 0, tempi - 1), shares


def _in_octave(path: NDArray[np.int64], centre: int) -> NDArray[np.int64]:
    """Without jumps to twice or half the tempo: stretches where beats are counted otherwise, not played faster."""
    steps = np.log(2) / np.log(GRID[1] / GRID[0])
    octaves = np.round((path - centre) / steps)
    moved = np.round(path - octaves * steps).astype(np.int64)
    return np.where(np.abs(moved - centre) <= _SAME, moved, path)


def _near(index: int) -> slice:
    return slice(max(0, index - _SAME), index + _SAME + 1)


def _told(
    envelope: Envelope, beats: Floats, path: NDArray[np.int64], begins: NDArray[np.int64], shares: Floats
) -> Tempo:
    """All that follows from the course of the tempo and the beats in frames."""
    local = _local(beats, GRID[path], begins)
    bpm = float(np.median(local))
    stable = bool(np.abs(local / bpm - 1).max() <= _STABLE)
    centre = int(np.median(path))
    confidence = float(shares[_near(centre)].sum())
    if stable and len(beats) > 2:
        apart = max(1, len(beats) // 2)
        steady = 60 * FRAMES_PER_SECOND * apart / float(np.median(beats[apart:] - beats[:-apart]))
        bpm = steady if abs(steady / bpm - 1) < _STABLE else bpm
    reliable = confidence >= _SURE and _grip(envelope, beats) >= _GRIP
    meter, downbeats = (0, ()) if not reliable else _bars(envelope, beats)
    return Tempo(
        bpm=bpm,
        confidence=confidence,
        alternatives=_alternatives(shares, centre),
        stable=stable,
        min_bpm=min(bpm, float(local.min())),
        max_bpm=max(bpm, float(local.max())),
        beat_seconds=tuple(np.maximum(beats / FRAMES_PER_SECOND - _LATE, 0).tolist()) if reliable else (),
        beats_per_bar=meter,
        downbeats=downbeats,
    )


def _local(beats: Floats, tempi: Floats, begins: NDArray[np.int64]) -> Floats:
    """Tempo of each window: that of its beats, where they are as its evidence says."""
    span = min(_SPAN, len(beats) - 1)
    if span < 1:
        return tempi
    measured = 60 * FRAMES_PER_SECOND * span / (beats[span:] - beats[:-span])
    firsts = np.searchsorted(beats[:-span], begins)
    lasts = np.searchsorted(beats[span:], begins + WINDOW, side="right")
    local = tempi.copy()
    for window, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
        if last > first:
            value = float(np.median(measured[first:last]))
            local[window] = value if abs(value / tempi[window] - 1) < 0.03 else tempi[window]
    return local


def _alternatives(shares: Floats, centre: int) -> tuple[TempoCandidate, ...]:
    """The three likeliest tempi but the one told, of at least 1 %."""
    rest = shares.copy()
    rest[_near(centre)] = 0
    found: list[TempoCandidate] = []
    while len(found) < _ALTERNATIVES:
        top = int(rest.argmax())
        share = float(rest[_near(top)].sum())
        if share < 0.01:
            break
        found.append(TempoCandidate(float(GRID[top]), share))
        rest[_near(top)] = 0
    return tuple(found)


def _grip(envelope: Envelope, beats: Floats) -> float:
    """By how many standard deviations onsets at beats are stronger than all are on average."""
    level = envelope.strength
    at = np.clip(np.round(beats).astype(int), 1, len(level) - 2)
    strongest = np.maximum(np.maximum(level[at - 1], level[at]), level[at + 1])
    return float((strongest.mean() - level.mean()) / max(float(level.std()), 1e-9))


def _bars(envelope: Envelope, beats: Floats) -> tuple[int, tuple[int, ...]]:
    """Beats a bar and the beats that begin one, told by low notes and new harmony."""
    at = np.clip(np.round(beats).astype(int), 2, max(2, len(envelope.strength) - 3))
    kinds = [envelope.bands[:, 0], envelope.change]
    accents = np.stack([np.max([kind[at + move] for move in range(-2, 3)], axis=0) for kind in kinds])
    meter, first = bars(accents.astype(np.float64))
    return (meter, tuple(range(first, len(beats), meter))) if meter else (0, ())
