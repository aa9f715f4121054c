"""Where sounds begin."""

from __future__ import annotations

from dataclasses import dataclass

import librosa

from servers.analyzer.envelope import FRAMES_PER_SECOND, HOP, SAMPLE_RATE, SILENCE_DB, Envelope
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
    frames = librosa.onset.onset_detect(
        onset_envelope=envelope.strength,
        sr=SAMPLE_RATE,
        hop_length=HOP,
        delta=DELTA,
        wait=WAIT,
        pre_avg=1,
        post_avg=1,
        pre_max=1,
        post_max=1,
    )
    seconds = tuple((frames / FRAMES_PER_SECOND).tolist())
    return Onsets(len(seconds), len(seconds) / envelope.seconds, seconds)
