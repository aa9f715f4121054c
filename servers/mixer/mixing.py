"""One mix, fed piece by piece: which blocks fit, what is ready, what comes out."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import numpy as np
from contrafact.engine.v1 import mixer_pb2
from numpy.typing import NDArray

from servers.media.loudness import LoudnessMeter, hop_frames
from servers.media.truepeak import TruePeakMeter
from servers.mixer.limiter import Limiter
from servers.mixer.matching import LOOK_AHEAD_HOPS, LoudnessMatch

Samples = NDArray[np.float32]

CHUNK_HOPS = 5
"""All arithmetic is done on chunks of 0.5 s, so that the result depends in no bit on how the inputs were cut."""
LOOK_AHEAD_CHUNKS = LOOK_AHEAD_HOPS // CHUNK_HOPS
MAX_SAMPLE = 1e6
"""What is louder is no audio, and could become infinite on its way."""
READ_AHEAD_SECONDS = 60
READ_AHEAD_FRAMES = 4_194_304


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


class _Input:
    """One input: its audio cut anew into chunks, what is measured of it, and its gain."""

    def __init__(self, spec: mixer_pb2.MixSpec, chunk: int, place: int) -> None:
        self.heard = not spec.inputs[place].reference_only
        self.gain = 10 ** (spec.inputs[place].gain_db / 20)
        self.match: LoudnessMatch | None = None  # gives this input its gain
        self.follows: list[LoudnessMatch] = []  # those for which this input is the reference
        self.meter: LoudnessMeter | None = None
        self.received = 0
        self.complete = 0  # chunks
        self.waiting: deque[Samples] = deque()
        self._frames, self._chunk, self._channels = spec.frames, chunk, spec.channels
        self._open: Samples | None = None
        self._filled = 0

    def add(self, samples: Samples) -> None:
        """Append frames; measure the chunks that this completes."""
        taken = 0
        while taken < samples.shape[1]:
            if self._open is None:
                length = min(self._chunk, self._frames - self.received)
                self._open, self._filled = np.empty((self._channels, length), np.float32), 0
            count = min(samples.shape[1] - taken, self._open.shape[1] - self._filled)
            self._open[:, self._filled : self._filled + count] = samples[:, taken : taken + count]
            taken += count
            self._filled += count
            self.received += count
            if self._filled == self._open.shape[1]:
                self._measure(self._open)
                self.waiting.append(self._open)
                self.complete += 1
                self._open = None

    def take(self) -> NDArray[np.float64]:
        """The next chunk with its gains."""
        samples = self.waiting.popleft().astype(np.float64)
        if self.match is not None:
            samples *= self.match.gains(samples.shape[1])
        samples *= self.gain
        return samples

    def _measure(self, samples: Samples) -> None:
        if self.meter is not None:
            loudness = self.meter.process(samples)
            if self.match is not None:
                self.match.add_own(loudness)
            for match in self.follows:
                match.add_reference(loudness)


class Mixing:
    """A mix of aligned inputs, in bounded memory.

    Args:
        spec: what to mix; its rules must have been checked.

    Attributes:
        position: frames of the mix that came out.
    """

    def __init__(self, spec: mixer_pb2.MixSpec) -> None:
        rate, hop = spec.sample_rate, hop_frames(spec.sample_rate)
        self.position = 0
        self._spec = spec
        self._chunk = CHUNK_HOPS * hop
        self._chunks = -(-spec.frames // self._chunk)
        self._mixed = 0  # chunks
        self._read_ahead = min(READ_AHEAD_SECONDS * rate, READ_AHEAD_FRAMES)
        self._inputs = [_Input(spec, self._chunk, place) for place in range(len(spec.inputs))]
        self._match_loudness(hop)
        self._limiter: Limiter | None = None
        if spec.HasField("true_peak_ceiling_db"):
            self._limiter = Limiter(rate, spec.channels, spec.true_peak_ceiling_db)
        self._loudness = LoudnessMeter(rate, spec.channels)
        self._true_peak = TruePeakMeter(spec.channels)

    def add(self, place: int, start: int, samples: Samples) -> None:
        """Take in float32 ``[channels, n]``, frames ``start`` to ``start + n`` of input number ``place``.

        Raises:
            Refused: they do not fit; nothing was taken in.
        """
        if place >= len(self._inputs):
            raise Refused("UNKNOWN_INPUT", f"there are {len(self._inputs)} inputs, and no number {place}", "input")
        to = self._inputs[place]
        if start != to.received:
            message = f"input {place} goes on at frame {to.received}, not {start}"
            raise Refused("WRONG_START", message, "start", input=place, expected=to.received)
        end = start + samples.shape[1]
        if end > self._spec.frames:
            raise Refused("TOO_MANY_FRAMES", f"input {place} has {self._spec.frames} frames, not {end}", "samples")
        slowest = min(each.received for each in self._inputs)
        if end - slowest > self._read_ahead:
            message = f"input {place} is more than {self._read_ahead} frames ahead of another, which is at {slowest}"
            raise Refused("RAN_AHEAD", message, input=place, slowest=slowest, limit=self._read_ahead)
        if not (samples.max() <= MAX_SAMPLE and samples.min() >= -MAX_SAMPLE):  # so is NaN found too
            raise Refused("INVALID_SAMPLES", f"a sample is not finite, or beyond ±{MAX_SAMPLE:,.0f}", "samples")
        to.add(samples)

    def mixed(self) -> Iterator[Samples]:
        """What is ready of the mix, float32 ``[channels, n]`` with n of at most 0.5 s; together, all of its frames."""
        while self._mixed < self._ready():
            yield from self._finished(self._sum().astype(np.float32))
            self._mixed += 1
            if self._mixed == self._chunks and self._limiter is not None:
                yield from self._measured(self._limiter.finish())

    def report(self) -> mixer_pb2.MixReport:
        """What was measured.

        Raises:
            Refused: not all frames of all inputs came.
        """
        for place, each in enumerate(self._inputs):
            if each.received != self._spec.frames:
                message = f"the end came after {each.received} of {self._spec.frames} frames of input {place}"
                raise Refused("TOO_FEW_FRAMES", message, input=place, received=each.received)
        report = mixer_pb2.MixReport(max_gain_reduction_db=self._limiter.max_reduction_db if self._limiter else 0.0)
        loudness, peak = self._loudness.lufs, self._true_peak.finish()
        if not math.isnan(loudness):
            report.integrated_lufs = loudness
        if peak > -math.inf:
            report.true_peak_db = peak
        for asked, each in zip(self._spec.inputs, self._inputs, strict=True):
            if each.match is not None:
                report.matches.add(
                    input=asked.name,
                    min_gain_db=each.match.min_gain_db,
                    max_gain_db=each.match.max_gain_db,
                    last_gain_db=each.match.gain_db,
                )
        return report

    def _match_loudness(self, hop: int) -> None:
        places = {asked.name: place for place, asked in enumerate(self._spec.inputs)}
        for asked, each in zip(self._spec.inputs, self._inputs, strict=True):
            if asked.loudness_reference and each.heard:
                reference = self._inputs[places[asked.loudness_reference]]
                each.match = LoudnessMatch(hop)
                reference.follows.append(each.match)
                for measured in (each, reference):
                    measured.meter = LoudnessMeter(self._spec.sample_rate, self._spec.channels)

    def _ready(self) -> int:
        """How many chunks can be mixed."""
        ready = self._chunks
        for each in self._inputs:
            ahead = LOOK_AHEAD_CHUNKS if each.meter is not None and each.complete < self._chunks else 0
            ready = min(ready, each.complete - ahead)
        return ready

    def _sum(self) -> NDArray[np.float64]:
        """The next chunk of all inputs, added up."""
        parts = [each.take() for each in self._inputs if each.heard]
        for each in self._inputs:
            if not each.heard:
                each.waiting.popleft()
        for part in parts[1:]:
            parts[0] += part
        return parts[0]

    def _finished(self, samples: Samples) -> Iterator[Samples]:
        return self._measured(samples if self._limiter is None else self._limiter.process(samples))

    def _measured(self, samples: Samples) -> Iterator[Samples]:
        if samples.shape[1]:
            self._loudness.process(samples)
            self._true_peak.process(samples)
            self.position += samples.shape[1]
            yield samples
