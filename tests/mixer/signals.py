"""Specs and whole mixes to test with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from contrafact.engine.v1 import mixer_pb2

from servers.mixer.mixing import Mixing
from servers.mixer.placing import placements
from tests.media.signals import RATE, Samples, in_cuts


def spec_of(*inputs: mixer_pb2.MixInput, frames: int, rate: int = RATE, channels: int = 2) -> mixer_pb2.MixSpec:
    """A spec without a limiter; inputs are called "a", "b" and so on where they have no name."""
    spec = mixer_pb2.MixSpec(sample_rate=rate, channels=channels, frames=frames, inputs=inputs)
    for name, asked in zip("abcdefghijklmnop", spec.inputs, strict=False):
        asked.name = asked.name or name
    return spec


def whole_mix(
    spec: mixer_pb2.MixSpec, inputs: Sequence[Samples | None], cuts: Sequence[Iterable[int]] | None = None
) -> tuple[Samples, mixer_pb2.MixReport]:
    """The mix, each input cut as told (else into seconds), that which has come least far fed next; None: not sent."""
    mixing, placed = Mixing(spec), placements(spec)
    seconds = [range(0, placement.frames, placement.sample_rate) for placement in placed]
    waiting = [
        [] if samples is None else in_cuts(samples, cut) for samples, cut in zip(inputs, cuts or seconds, strict=True)
    ]
    sent = [0] * len(inputs)
    parts: list[Samples] = [np.zeros((spec.channels, 0), np.float32), *mixing.mixed()]
    while any(waiting):
        places = (place for place in range(len(inputs)) if waiting[place])
        place = min(places, key=lambda place: placed[place].known(sent[place]))
        piece = waiting[place].pop(0)
        mixing.add(place, sent[place], piece)
        sent[place] += piece.shape[1]
        parts += mixing.mixed()
    return np.concatenate(parts, axis=1), mixing.report()
