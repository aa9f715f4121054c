"""One mix, fed piece by piece: which blocks fit, what is ready, what comes out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from contrafact.engine.v1 import mixer_pb2

from servers.media.loudness import hop_frames
from servers.mixer.inputs import Grid, Input, Samples
from servers.mixer.levels import Levels
from servers.mixer.limiter import Limiter
from servers.mixer.matching import LOOK_AHEAD_HOPS, LoudnessMatch
from servers.mixer.placing import placements, read_ahead_frames
from servers.mixer.strips import Strip

CHUNK_HOPS = 5
"""All arithmetic is done on chunks of 0.5 s, so that the result depends in no bit on how the inputs were cut."""
LOOK_AHEAD_CHUNKS = LOOK_AHEAD_HOPS // CHUNK_HOPS
MAX_SAMPLE = 1e6
"""What is louder is no audio, and could become infinite on its way."""


class Refused(ValueError):
    """Something that does not fit.

    Attributes:
        reason: UPPER_SNAKE_CASE, as the proto names it.
        field: of the block, the one at fault.
        facts: what was expected, for machines.
    """

    def __init__(self, reason: str, message: str, field: str = "", **facts: int) -> None:
        super().__init__(message)
        self.reason, self.field, self.facts = reason, field, facts


class Mixing:
    """A mix of inputs, in bounded memory.

    Args:
        spec: what to mix; its rules must have been checked.

    Attributes:
        position: frames of the mix that came out.

    Raises:
        ValueError: an input of another rate does not say how many frames it has.
    """

    def __init__(self, spec: mixer_pb2.MixSpec) -> None:
        rate, hop = spec.sample_rate, hop_frames(spec.sample_rate)
        self.position = 0
        self._spec = spec
        self._gain = 10 ** (spec.gain_db / 20)
        self._grid = Grid(spec.frames, CHUNK_HOPS * hop)
        self._mixed = 0  # chunks
        self._read_ahead = read_ahead_frames(spec)
        self._inputs = [Input(placement, self._grid, rate) for placement in placements(spec)]
        self._strips = self._strips_of(hop)
        self._limiter: Limiter | None = None
        if spec.HasField("true_peak_ceiling_db") and not spec.measure_only:
            self._limiter = Limiter(rate, spec.channels, spec.true_peak_ceiling_db)
        self._levels = Levels(spec)

    def add(self, place: int, start: int, samples: Samples) -> None:
        """Take in float32 ``[channels, n]``, frames ``start`` to ``start + n`` of input number ``place``.

        Raises:
            Refused: they do not fit; nothing was taken in.
        """
        to = self._input(place)
        if start != to.received:
            message = f"input {place} goes on at frame {to.received}, not {start}"
            raise Refused("WRONG_START", message, "start", input=place, expected=to.received)
        end = start + samples.shape[1]
        if end > to.placement.frames:
            raise Refused("TOO_MANY_FRAMES", f"input {place} has {to.placement.frames} frames, not {end}", "samples")
        slowest = min(each.known for each in self._inputs)
        if start < to.placement.needed and to.placement.position(end) - slowest > self._read_ahead:
            message = f"input {place} is more than {self._read_ahead} frames ahead of another, which is at {slowest}"
            raise Refused("RAN_AHEAD", message, input=place, slowest=slowest, limit=self._read_ahead)
        if not (samples.max() <= MAX_SAMPLE and samples.min() >= -MAX_SAMPLE):  # so is NaN found too
            raise Refused("INVALID_SAMPLES", f"a sample is not finite, or beyond ±{MAX_SAMPLE:,.0f}", "samples")
        to.add(samples)

    def channels(self, place: int) -> int:
        """Channels of input number ``place``. Raises Refused: there is none."""
        return self._input(place).placement.channels

    def mixed(self) -> Iterator[Samples]:
        """What is ready of the mix, float32 ``[channels, n]`` with n of at most 0.5 s; together, all of its frames."""
        while self._mixed < self._ready():
            yield from self._finished(self._sum())
            self._mixed += 1
            if self._mixed == self._grid.chunks and self._limiter is not None:
                yield from self._measured(self._limiter.finish())

    def report(self) -> mixer_pb2.MixReport:
        """What was measured.

        Raises:
            Refused: not all frames came that are needed.
        """
        for place, each in enumerate(self._inputs):
            if each.received < each.placement.needed:
                message = f"the end came after {each.received} of {each.placement.frames} frames of input {place}"
                raise Refused("TOO_FEW_FRAMES", message, input=place, received=each.received)
        report = self._levels.report()
        report.max_gain_reduction_db = self._limiter.max_reduction_db if self._limiter else 0.0
        for strip in self._strips:
            if strip.match is not None:
                report.matches.add(
                    input=strip.name,
                    min_gain_db=strip.match.min_gain_db,
                    max_gain_db=strip.match.max_gain_db,
                    last_gain_db=strip.match.gain_db,
                )
        return report

    def _strips_of(self, hop: int) -> list[Strip]:
        """The strips of all inputs that are heard."""
        named = {asked.name: each for asked, each in zip(self._spec.inputs, self._inputs, strict=True)}
        strips = []
        for asked, each in zip(self._spec.inputs, self._inputs, strict=True):
            if not each.placement.heard:
                continue
            match = LoudnessMatch(hop) if asked.loudness_reference else None
            if match is not None:
                each.tell(match.add_own)
                named[asked.loudness_reference].tell(match.add_reference)
            strips.append(Strip(asked, each, self._spec.channels, match))
        return strips

    def _input(self, place: int) -> Input:
        if place >= len(self._inputs):
            raise Refused("UNKNOWN_INPUT", f"there are {len(self._inputs)} inputs, and no number {place}", "input")
        return self._inputs[place]

    def _ready(self) -> int:
        """How many chunks can be mixed."""
        ready = self._grid.chunks
        for each in self._inputs:
            ahead = LOOK_AHEAD_CHUNKS if each.metered and each.complete < self._grid.chunks else 0
            ready = min(ready, each.complete - ahead)
        return ready

    def _sum(self) -> Samples:
        """The next chunk of all inputs, added up."""
        number = self._mixed
        for each in self._inputs:
            each.measure(min(number + 1 + LOOK_AHEAD_CHUNKS, self._grid.chunks))
        parts = (strip.part(number, self._grid) for strip in self._strips)
        total = None
        for part in parts:
            if part is not None:
                total = part if total is None else np.add(total, part, out=total)
        for each in self._inputs:
            each.drop(number)
        if total is None:
            return np.zeros((self._spec.channels, self._grid.length(number)), np.float32)
        total *= self._gain
        return total.astype(np.float32)

    def _finished(self, samples: Samples) -> Iterator[Samples]:
        return self._measured(samples if self._limiter is None else self._limiter.process(samples))

    def _measured(self, samples: Samples) -> Iterator[Samples]:
        if samples.shape[1]:
            self._levels.process(samples)
            self.position += samples.shape[1]
            yield samples
