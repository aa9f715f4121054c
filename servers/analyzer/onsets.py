"""Where sounds begin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from servers.analyzer.envelope import FRAMES_PER_SECOND, SILENCE_DB, Envelope
from servers.analyzer.unknown import Unknown

MIN_SECONDS = 0.1
DELTA = 0.06  # above the mean of this frame and the last, of the strongest onset's strength
WAIT = 1  # frames after an onset in which there is none


@dataclass(frozen=True, slots=True)
class Onsets:
    """Where sounds begin.

    Attributes:
        count: of onsets.
        rate: onsets a second.
        seconds: the onsets, ascending.
    """

    count: int
    rate: float
    seconds: tuple[float, ...]


def find_onsets(envelope: Envelope) -> Onsets | Unknown:
    """Finds onsets as ``librosa.onset.onset_detect(delta=0.06, wait=1, pre_avg=1, post_avg=1, post_max=1)`` does.

    Unlike librosa, it finds the one with which a recording begins.

    Returns:
        The onsets, TOO_SHORT or SILENT.
    """
    if envelope.seconds < MIN_SECONDS:
        return Unknown("TOO_SHORT", f"It is shorter than {MIN_SECONDS} s.")
    if envelope.peak_db < SILENCE_DB:
        return Unknown("SILENT", "There is nothing above -70 dBFS.")
    frames = _peaks(envelope.strength)
    seconds = tuple((frames / FRAMES_PER_SECOND).tolist())
    return Onsets(len(seconds), len(seconds) / envelope.seconds, seconds)


def _peaks(strength: NDArray[np.float32]) -> NDArray[np.int64]:
    """Frames that are no weaker than the one before and, of a strength from 0 to 1, by DELTA above the mean of both.

    Of those, none within WAIT frames of the last: S. Boeck, F. Krebs and M. Schedl, "Evaluating the online capabilities
    of onset detection methods", ISMIR 2012, with windows of two frames.
    """
    level = strength - strength.min()
    level = level / (level.max() + np.finfo(np.float32).tiny)
    before = np.concatenate([level[:1], level[:-1]])
    found: list[int] = []
    for frame in np.flatnonzero((level >= before) & (level >= (before + level) / 2 + np.float32(DELTA))).tolist():
        if not found or frame > found[-1] + WAIT:
            found.append(frame)
    return np.array(found, np.int64)
