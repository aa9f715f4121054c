"""Where the inputs lie in a mix: which are heard, how much of each is needed, how far ahead of others it may come.

The server and its client must agree on this, so both ask here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from contrafact.engine.v1 import mixer_pb2

from servers.media.resample import resampled_frames

READ_AHEAD_SECONDS = 60
READ_AHEAD_FRAMES = 4_194_304
READ_AHEAD_FRAMES_OF_ALL = 67_108_864
_RESAMPLER_SECONDS = 1
"""What a resampler may want to know beyond the last frame that is heard."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one input lies.

    Attributes:
        sample_rate: of the input, in Hz.
        channels: of the input.
        frames: of the input, at its rate.
        begin: frame of the mix at which its first lies; may be below 0.
        end: frame of the mix after its last; may be beyond the mix's own.
        heard: whether the mix depends on its samples; a reference is not heard.
        needed: its frames without which there is no mix, from its first on. Nobody waits for what follows them.
    """

    sample_rate: int
    channels: int
    frames: int
    begin: int
    end: int
    heard: bool
    needed: int
    _mix_rate: int
    _mix_frames: int

    @property
    def first(self) -> int:
        """First frame of the mix that it could be heard in."""
        return max(0, self.begin)

    @property
    def last(self) -> int:
        """Frame of the mix after the last that it could be heard in."""
        return min(self.end, self._mix_frames)

    def position(self, frames: int) -> int:
        """The frame of the mix that so many of its frames reach; those before the mix's first add nothing."""
        reached = self.begin + resampled_frames(min(frames, self.needed), self.sample_rate, self._mix_rate)
        return min(max(0, reached), self._mix_frames)

    def known(self, frames: int) -> int:
        """As ``position``, but all of the mix if no more than so many are needed."""
        return self.position(frames) if frames < self.needed else self._mix_frames


def placements(spec: mixer_pb2.MixSpec) -> list[Placement]:
    """Where each input of the spec lies.

    Raises:
        ValueError: an input of another rate does not say how many frames it has.
    """
    soloed = any(asked.solo and not asked.reference_only for asked in spec.inputs)
    placed = [_placed(spec, asked, soloed) for asked in spec.inputs]
    pairs = list(zip(spec.inputs, placed, strict=True))
    references = {asked.loudness_reference for asked, place in pairs if place.heard}
    return [
        place if place.heard or asked.name in references else dataclasses.replace(place, needed=0)
        for asked, place in pairs
    ]


def read_ahead_frames(spec: mixer_pb2.MixSpec) -> int:
    """How many frames of the mix one input may be ahead of the one that has come least far."""
    share = READ_AHEAD_FRAMES_OF_ALL // max(1, len(spec.inputs))
    return min(READ_AHEAD_SECONDS * spec.sample_rate, READ_AHEAD_FRAMES, share)


def _placed(spec: mixer_pb2.MixSpec, asked: mixer_pb2.MixInput, soloed: bool) -> Placement:
    """One input, as if it were needed wherever it overlaps the mix."""
    rate, frames = asked.sample_rate or spec.sample_rate, asked.frames or spec.frames
    if rate != spec.sample_rate and not asked.frames:
        raise ValueError(f"{asked.name}: an input of another rate than the mix's must say how many frames it has")
    begin = 0 if asked.reference_only else asked.offset
    end = begin + resampled_frames(frames, rate, spec.sample_rate)
    overlaps = max(0, begin) < min(end, spec.frames)
    reach = spec.frames - begin
    if rate != spec.sample_rate:
        reach = -(-reach * rate // spec.sample_rate) + _RESAMPLER_SECONDS * rate
    return Placement(
        sample_rate=rate,
        channels=asked.channels or spec.channels,
        frames=frames,
        begin=begin,
        end=end,
        heard=overlaps and not (asked.reference_only or asked.muted or (soloed and not asked.solo)),
        needed=min(reach, frames) if overlaps else 0,
        _mix_rate=spec.sample_rate,
        _mix_frames=spec.frames,
    )
