"""Fits the weights of ``servers.analyzer.tempogram`` to random rhythms, whose tempo is known.

``python -m tests.bench.analysis.fit_tempo`` prints the weights to be put there, how they do with rhythms that had no
part in the fit, and by how much evidence is to be scaled for confidence to be right as often as it says. It takes about
3 minutes on 2 free cores. Neither the tests' rhythms nor those of ``tests.bench.analysis.rhythm`` are among these.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from servers.analyzer.envelope import FRAMES_PER_SECOND, EnvelopeFeature
from servers.analyzer.tempogram import GRID, LAGS, RATIOS, WINDOW, Floats, autocorrelations, signals, starts
from tests.analyzer.rhythms import (
    Band,
    Clock,
    Random,
    Rhythm,
    chord,
    clicks,
    drums,
    mixed,
    notes,
    strums,
    tone,
    without_beat,
)
from tests.bench.analysis.rhythm import powers

FITTED = range(1_800)
HELD_OUT = range(1_800, 2_100)
SECONDS = 13.0  # one window and the drift of the first beat
DEGREE = 4  # of the polynomial of the logarithm of the tempo
PENALTY = 5e-4  # of squared weights

_SAME = 0.021  # how far the logarithm of a tempo may be from the true one


@dataclass(frozen=True)
class Evidence:
    """What the first window of each rhythm says.

    Attributes:
        values: float32 ``[rhythms, tempi, 4 * ratios]``, autocorrelations.
        tempi: true tempo in beats a minute, 0 where there is none, ``[rhythms]``.
        kinds: of rhythms.
    """

    values: NDArray[np.float32]
    tempi: Floats
    kinds: list[str]

    def right(self) -> NDArray[np.bool_]:
        """Which answers are right: each tempo of ``GRID`` and, last, that there is none, ``[rhythms, tempi + 1]``."""
        near = np.abs(np.log(np.maximum(self.tempi, 1)[:, None] / GRID)) < _SAME
        return np.column_stack([near, self.tempi == 0])


def random_rhythm(number: int) -> tuple[str, Rhythm]:
    """The rhythm of a number, and its kind."""
    random = np.random.default_rng((7, number))
    share, noise = random.random(), float(random.choice([0, 0.003, 0.01, 0.03]))
    clock = {"first": float(random.uniform(0.05, 1))}
    if random.random() < 0.3:
        clock["drift"] = float(random.uniform(-0.04, 0.04))
    if share < 0.17:
        kinds = ["noise", "drone", "talk", "talk", "rubato", "rubato", "strokes"]
        return "none", without_beat(str(random.choice(kinds)), SECONDS, random)
    if share < 0.32:
        bpm = float(random.uniform(37, 245))
        clock["drift"] = 3 * clock.get("drift", 0.0)
        if 55 < bpm < 180 and random.random() < 0.2:
            clock["swing"] = float(random.uniform(0.54, 0.68))
        return "clicks", clicks(bpm, SECONDS, random, meter=int(random.choice([0, 3, 4])), noise=noise, **clock)
    bpm = float(np.clip(112 * 2 ** random.normal(0, 0.33), 45, 220))
    if bpm < 180 and random.random() < 0.2:
        clock["swing"] = float(random.uniform(0.54, 0.68))
    meter = int(random.choice([4, 4, 4, 3]))
    if share < 0.38:
        return "strums", strums(bpm, SECONDS, random, meter=meter, noise=noise, **clock)
    if share < 0.45:
        return "notes", notes(bpm, SECONDS, random, meter=meter, noise=noise, **clock)
    if share < 0.65:
        return "drums", _drums(bpm, random, meter, clock, noise)
    parts = [(_figure(bpm, random, meter, clock), float(random.uniform(0.3, 1))) for _ in range(random.integers(1, 4))]
    if random.random() < 0.6:
        parts.append((notes(bpm, SECONDS, random, meter=meter, **clock), float(random.uniform(0.3, 1))))
    if random.random() < 0.7:
        parts.insert(0, (_drums(bpm, random, meter, clock, noise), float(random.uniform(0.5, 1))))
        return "band", mixed(*parts)
    return "ensemble", mixed(*parts)


def _drums(bpm: float, random: Random, meter: int, clock: dict[str, float], noise: float) -> Rhythm:
    gains = {voice: float(random.uniform(0.25, 1)) for voice in ("kick", "snare", "rim", "hat", "ride")}
    gains["hat"] *= 0.7
    jitter, bass, chords = float(random.uniform(0, 0.012)), bool(random.random() < 0.3), bool(random.random() < 0.3)
    voices = _pattern(bpm, random, meter)
    return drums(
        voices, bpm, SECONDS, random, noise=noise, jitter=jitter, bass=bass, chords=chords, gains=gains, **clock
    )


def _pattern(bpm: float, random: Random, meter: int) -> dict[str, str]:
    """A bar of drums; sixteenths only where there is time for them."""
    fine = float(bpm < random.uniform(110, 165))
    steps = np.arange(4 * meter)
    beat, eighth = steps % 4 == 0, steps % 2 == 0
    kick = np.where(beat, random.choice([0.25, 0.5, 1.0]), np.where(eighth, 0.5, 0.15 * fine) * random.random())
    kick[0] = random.choice([0.97, 0.97, 0.4])
    back = steps % 8 == 4 if meter == 4 else beat & (steps > 0)
    snare = np.where(back, 0.95 if meter == 4 else 0.6, np.where(eighth, 0.3, fine) * 0.15 * random.random())
    style = random.choice(["backbeat", "break", "each", "roll", "claps off"], p=[0.6, 0.17, 0.08, 0.08, 0.07])
    if style == "break":
        kick, snare = np.where(beat & ~back, kick, kick + 0.2 * fine), np.where(back, 0.9, snare + 0.25 * fine)
    elif style == "each":
        snare = np.where(beat, 0.95, snare)
    elif style == "roll":
        snare = np.where(eighth, 0.9, 0.8 * fine)
    elif style == "claps off":
        snare = np.where(steps % 4 == 2, 0.9, 0.05)
    chances = [0.12, 0.38, 0.28, 0.12, 0.1] if fine else [0.25, 0.5, 0, 0.15, 0.1]
    gap = str(random.choice(["quarters", "eighths", "sixteenths", "off", "none"], p=chances))
    every = {"quarters": beat, "eighths": eighth, "sixteenths": steps >= 0, "off": steps % 4 == 2, "none": steps < 0}
    loud = [steps >= 0, steps % 4 == 0, steps % 4 == 2, eighth][random.integers(4)]
    hat = "".join(
        "." if not on or random.random() < 0.03 else "ox"[int(up)] for on, up in zip(every[gap], loud, strict=True)
    )
    soft = 0.8 if style == "roll" else 0.25
    voices = {
        "kick": _strokes(kick, 0.1, random),
        str(random.choice(["snare", "snare", "rim"])): _strokes(snare, soft, random),
        str(random.choice(["hat", "hat", "ride"])): hat,
    }
    if random.random() < 0.2:
        del voices[list(voices)[random.integers(2)]]
    return voices if set("".join(voices.values())) != {"."} else {"hat": "x..." * meter}


def _strokes(chances: Floats, soft: float, random: Random) -> str:
    return "".join("." if random.random() >= chance else "xo"[int(random.random() < soft)] for chance in chances)


def _figure(bpm: float, random: Random, meter: int, clock: dict[str, float]) -> Rhythm:
    """Bass, arpeggio or chords that do the same in each bar, on new roots."""
    times, band = Clock(bpm, SECONDS, **clock), Band(SECONDS, random, jitter=float(random.uniform(0, 0.01)))
    kind = str(random.choice(["bass", "bass", "bass", "arpeggio", "chords", "off", "pad"]))
    fine = [4, 4, 4] if bpm < random.uniform(95, 140) else []
    parts = int(random.choice({"bass": [1, 2, 2, 2, *fine], "arpeggio": [2, 3, *fine]}.get(kind, [2, *fine])))
    slots = np.arange(meter * parts)
    some = (random.random(len(slots)) < random.choice([0.5, 0.8])) | (slots == 0)
    held = slots % (2 * parts) == 0
    bass = [slots >= 0, some, held][random.choice(3, p=[0.5, 0.25, 0.25])]
    kept = {"bass": bass, "chords": some, "off": slots % 2 == 1, "pad": slots == 0}.get(kind, slots >= 0)
    gains = random.uniform(random.choice([0.5, 1.0]), 1, len(slots))
    moves = random.choice([0, 0, 0, 12] if kind == "bass" and parts > 1 else [0, 4, 7, 12], len(slots))
    low, long = (-12, 0.9) if kind == "bass" else (12, float(random.choice([0.5, 0.9, 1.5])))
    length = meter if kind == "pad" else long / parts
    decay, attack = float(random.uniform(0.2, 1)), 0.08 if kind == "pad" else float(random.uniform(0.004, 0.02))
    root = 45.0
    for place in range(times.count * parts):
        slot = place % len(slots)
        if slot == 0:
            root = 43 + float(random.choice([0, 2, 4, 5, 7, 9]))
        if kept[slot]:
            moment = times.at(place / parts)
            seconds = times.at(place / parts + length) - moment
            if kind in ("bass", "arpeggio"):
                note = tone(root + low + moves[slot], seconds, decay=decay, attack=attack)
            else:
                note = chord(root + 12, seconds, decay=1.5 if kind == "pad" else decay, attack=attack)
            band.add(note, moment, 0.5 * float(gains[slot]))
    beats = np.array([times.at(beat) for beat in range(times.count)])
    return Rhythm(band.samples, bpm, beats, beats[::meter])


def heard(number: int) -> tuple[str, float, NDArray[np.float32]]:
    """Kind and tempo of the rhythm of a number, and autocorrelations of its first window ``[tempi, 4 * ratios]``."""
    kind, rhythm = random_rhythm(number)
    feature = EnvelopeFeature()
    feature.process(powers(rhythm.samples))
    rows = signals(feature.finish())
    inside = rhythm.beats[rhythm.beats < WINDOW / FRAMES_PER_SECOND + 0.3]
    bpm = 60 / float(np.median(np.diff(inside))) if rhythm.bpm else 0.0
    lags = 60 / GRID[:, None] * np.array(RATIOS) * FRAMES_PER_SECOND
    low = np.minimum(lags.astype(int), LAGS - 2)
    values = autocorrelations(rows, starts(rows.shape[1])[:1])[0]
    between = values[:, low] * (1 - lags + low) + values[:, low + 1] * (lags - low)
    return kind, bpm, between.transpose(1, 0, 2).reshape(len(GRID), -1).astype(np.float32)


def collected(numbers: Sequence[int], processes: int = 2) -> Evidence:
    """The evidence of the rhythms of these numbers."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        kinds, tempi, values = zip(*pool.map(heard, numbers, chunksize=20), strict=True)
    return Evidence(np.stack(values), np.array(tempi), list(kinds))


def fit(evidence: Evidence) -> tuple[Floats, Floats]:
    """The likeliest weights ``[4 * ratios]`` and coefficients of the polynomial, lowest first."""
    count = evidence.values.shape[2]
    flat = evidence.values.reshape(-1, count)
    right = evidence.right()
    powers_of = np.vander(np.log(GRID / 110), DEGREE + 1, increasing=True)

    def loss(given: Floats) -> tuple[float, Floats]:
        weights, terms = given[:count], given[count:]
        scores = _scores(evidence.values, weights, powers_of @ terms)
        every = special.logsumexp(scores, axis=1, keepdims=True)
        good = special.logsumexp(np.where(right, scores, -np.inf), axis=1, keepdims=True)
        value = float((every - good).mean() + PENALTY * weights @ weights)
        slopes = (np.exp(scores - every) - np.where(right, np.exp(scores - good), 0))[:, :-1] / len(scores)
        of_weights = slopes.reshape(-1).astype(np.float32) @ flat + 2 * PENALTY * weights
        return value, np.concatenate([of_weights, slopes.sum(axis=0) @ powers_of])

    found = optimize.minimize(loss, np.zeros(count + DEGREE + 1), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    return found.x[:count], found.x[count:]


def answers(evidence: Evidence, weights: Floats, terms: Floats) -> Floats:
    """How likely each answer is before it is scaled, as a logarithm, ``[rhythms, tempi + 1]``."""
    return _scores(evidence.values, weights, np.polyval(terms[::-1], np.log(GRID / 110)))


def _scores(values: NDArray[np.float32], weights: Floats, prior: Floats) -> Floats:
    told = values @ weights.astype(np.float32) + prior
    return np.column_stack([told, np.zeros(len(told))])


def scale(scores: Floats, right: NDArray[np.bool_]) -> float:
    """What to multiply evidence by for right answers to be likeliest."""

    def loss(factor: float) -> float:
        good = special.logsumexp(np.where(right, factor * scores, -np.inf), axis=1)
        return float((special.logsumexp(factor * scores, axis=1) - good).mean())

    return float(optimize.minimize_scalar(loss, bounds=(0.1, 3), method="bounded").x)


def main() -> None:
    weights, terms = fit(collected(FITTED))
    for ratio, row in zip(RATIOS, weights.reshape(4, -1).T, strict=True):
        print(f"    ({Fraction(ratio).limit_denominator(9)}, " + ", ".join(f"{weight:.2f}" for weight in row) + "),")
    print("(" + ", ".join(f"{term:.2f}" for term in terms) + ")")
    held_out = collected(HELD_OUT)
    scores, right = answers(held_out, weights, terms), held_out.right()
    good = right[np.arange(len(scores)), scores.argmax(axis=1)]
    for kind in sorted(set(held_out.kinds)):
        of_kind = good[np.array(held_out.kinds) == kind]
        print(f"{kind}  n {len(of_kind)}  right {of_kind.mean():.3f}")
    print(f"scale {scale(scores, right):.2f}")


if __name__ == "__main__":
    main()
