"""Where sounds begin."""

from __future__ import annotations

from dataclasses import dataclass

import librosa

from servers.analyzer.envelope import (
    FRAMES_PER_SECOND,
    HOP,
    SAMPLE_RATE,
    SILENCE_DB,
    Envelope,
    EnvelopeFeature,
    Samples,
)
from servers.analyzer.unknown import Unknown

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


class OnsetFeature:
    """Finds onsets as ``librosa.onset.onset_detect(delta=0.06, wait=1, pre_avg=1, post_avg=1, post_max=1)`` does."""

    def __init__(self) -> None:
        self._envelope = EnvelopeFeature()

    def process(self, powers: Samples) -> None:
        """Take in float32 ``[frames, 1025]``: |STFT|² at 22,050 Hz, frames of 2,048 every 512."""
        self._envelope.process(powers)

    def finish(self) -> tuple[Onsets | Unknown, Envelope]:
        """The onsets, and the envelope, of which tempo and beats are found. Call once, last."""
        envelope = self._envelope.finish()
        return find_onsets(envelope), envelope


def find_onsets(envelope: Envelope) -> Onsets | Unknown:
    """Picks the peaks of an envelope."""
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
