"""Live conversion: short blocks, each with seconds of what came before it. NumPy only.

A window is what one request converts. Its end is as new as can be; of its result a block is returned, and what the next
block will overlap:

    |    context, `skip` frames    | block, `advance` frames | fade | search | what more has arrived |
                                   |<------- `length` frames ------------->|

Frames are 10 ms and counted in the stream, so a frame has the same noise in all its windows; the sine's phase and the
pitch of sent frames go from window to window. SOLA (synchronised overlap and add) hides what still differs: it joins
blocks where they resemble each other most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import soxr
from numpy.typing import NDArray

from .chunks import HOP, RATE, REST, SILENCE, Audio, Converted, Params, length, mirror

SEARCH = 1  # frames in which SOLA looks for the best place
LONGEST_FADE = 4  # frames
SLACK = 1  # frames from the newest sample to the end of the window: REST, and as much for the resampler's edge
GAIN = 1.02  # how much better a shifted join must be than an unshifted one


@dataclass(frozen=True)
class LiveChunk:
    """One window of a live stream.

    Attributes:
        audio: 16 kHz, (frames * 160 + 80,), frames even.
        first: number of the first returned frame in its stream; its noise depends on it.
        skip: frames of the window before that one.
        length: frames that are returned.
        advance: frames after the first returned one at which the next block begins.
        params: see there.
        phase: cycles of the sine at the first returned frame.
        f0: Hz, 0 where unvoiced, before smoothing and key shift, (frames,); NaN in the last frames, which are to be
            estimated. None: estimate all.
    """

    audio: Audio
    first: int
    skip: int
    length: int
    advance: int
    params: Params = field(default_factory=Params)
    phase: float = 0.0
    f0: NDArray[np.float64] | None = None

    @property
    def frames(self) -> int:
        """Of the window."""
        return (len(self.audio) - REST) // HOP


class LiveStream:
    """A live stream's side of the conversation with the model::

        stream.push(samples)
        while (chunk := stream.window()) is not None:
            made, rate = ...  # the model's answer, and its voice's rate
            samples = stream.take(made, rate)

    The result is as long as what was pushed, to the sample, and in step with it: each block that arrives sends one,
    the first ones less by `delay_seconds` - `block_seconds` in all, and after `finish` the rest comes. A window whose
    conversion failed can be sent again. What is pushed is held until its window is taken: take before pushing more.

    Args:
        rate: samples a second of what is pushed.
        params: of the conversion.
        rate_out: of the result; 0: the voice's.
        block_seconds: 0.05..2; more is cheaper, less is faster.
        crossfade_seconds: 0.01..0.1; of it at most 40 ms are faded, the rest is seen by the model.
        context_seconds: 0.2..10: what the model sees before a block.

    All durations are rounded to 10 ms.
    """

    def __init__(
        self,
        rate: int,
        params: Params = Params(),  # noqa: B008 - it is frozen
        *,
        rate_out: int = 0,
        block_seconds: float = 0.25,
        crossfade_seconds: float = 0.05,
        context_seconds: float = 2.5,
    ) -> None:
        for name, value, low, high in (
            ("rate", rate, 1000, 1_000_000),
            ("rate_out", rate_out or rate, 1000, 1_000_000),
            ("block_seconds", block_seconds, 0.05, 2),
            ("crossfade_seconds", crossfade_seconds, 0.01, 0.1),
            ("context_seconds", context_seconds, 0.2, 10),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}, must be {low}..{high}")
        self.rate, self.params, self._rate_out = rate, params, rate_out
        self._block, overlap = round(block_seconds * 100), round(crossfade_seconds * 100)
        self._fade = min(overlap, LONGEST_FADE)
        # Content features have two frames each. Windows all begin at even frames (or all at odd ones), because then a
        # frame's feature is of the same samples in all of them; blocks of odd length pay for that with a frame.
        self._odd = self._block % 2
        self._ahead = max(overlap + SEARCH, self._fade + SEARCH + SLACK + self._odd)
        frames = round(context_seconds * 100) + self._block + self._ahead - SLACK
        self._frames = frames + frames % 2
        self.pushed = 0  # samples, at `rate`
        self._raw = np.zeros(0, np.float32)  # arrived, not yet in `_heard`
        self._inlet = _Resampler(rate, RATE)
        self._heard = np.zeros(0, np.float32)  # 16 kHz, from the window's beginning
        self._count = 0  # blocks taken
        self._ended = False
        self._waiting: LiveChunk | None = None
        self._phase = 0.0
        self._f0: NDArray[np.float64] | None = None  # of the frames of the next window that are sent
        self._outlet: _Resampler | None = None
        self._tail: Audio | None = None

    @property
    def block_seconds(self) -> float:
        """Of a block."""
        return self._block / 100

    @property
    def delay_seconds(self) -> float:
        """From the arrival of a block's first sample to that of the last one which the block's conversion waits for.

        A block, and the larger of ``crossfade + 10 ms`` and what fade, search and the content encoder's last 5 ms need.
        Resampling adds nothing. The model's time, the network's and the devices' are not in it.
        """
        return (self._block + self._ahead) / 100

    def push(self, block: Audio) -> None:
        """Take samples (n,).

        Raises:
            ValueError: they are not mono, or contain NaN or infinity, or come after the end.
        """
        if block.ndim != 1 or not np.isfinite(block).all():
            raise ValueError("a block is one-dimensional and finite")
        if self._ended:
            raise ValueError("the stream has ended")
        self.pushed += len(block)
        self._raw = np.concatenate([self._raw, block.astype(np.float32, copy=False)])

    def finish(self) -> None:
        """Nothing more will be pushed; silence follows, until all that was pushed is converted."""
        self._ended = True

    def window(self) -> LiveChunk | None:
        """The next window to convert, the same until it is taken; None if it needs more samples, or all is done."""
        if self._waiting is None:
            self._waiting = self._next()
        return self._waiting

    def take(self, made: Converted, rate: int) -> Audio:
        """Take the window's conversion by a voice of ``rate`` samples a second; give what can be sent.

        Raises:
            ValueError: no window waits, or this is not its conversion.
        """
        chunk = self._waiting
        if chunk is None:
            raise ValueError("no window waits for its conversion")
        if made.audio.shape != (chunk.length * rate // 100,) or made.f0.shape != (chunk.frames,):
            raise ValueError(f"{made.audio.shape} samples, {made.f0.shape} frames are not this window's conversion")
        if self._outlet is None:
            self._outlet = _Resampler(rate, self._rate_out or rate)
        part, tail = self._join(made.audio, rate // 100)
        part = part[max(-chunk.first, 0) * rate // 100 :]  # the stream begins at frame 0
        ahead: Audio = tail
        until = None
        if self._ended and (chunk.first + chunk.advance) * self.rate >= 100 * self.pushed:
            rest = length(self.pushed, self.rate, rate) - self._outlet.taken
            part, ahead = part[:rest], np.concatenate([part[rest:], tail])
            until = length(self.pushed, self.rate, self._rate_out or rate)
        self._count, self._waiting, self._tail = self._count + 1, None, tail
        self._phase, self._f0 = made.phase, made.f0[: chunk.skip + chunk.advance]
        return self._outlet.push(part, ahead, until)

    def _next(self) -> LiveChunk | None:
        arrived = (self._count + 1) * self._block  # frames
        first = arrived - self._ahead - self._block
        if self._ended and max(first, 0) * self.rate >= 100 * self.pushed:
            return None
        needed = -(-arrived * self.rate // 100) - self._inlet.taken
        if len(self._raw) < needed:
            if not self._ended:
                return None
            self._raw = np.pad(self._raw, (0, needed - len(self._raw)))
        self._hear(needed)
        stop = arrived - SLACK
        stop -= stop % 2 * self._odd
        end = len(self._heard) - (self._inlet.sent - stop * HOP - REST)
        audio = self._heard[end - self._frames * HOP - REST : end]
        skip = self._frames - (stop - first)
        f0 = None
        if self._f0 is not None:
            f0 = np.full(self._frames, np.nan)
            f0[:skip] = self._f0[-skip:]
        size = self._block + self._fade + SEARCH
        return LiveChunk(audio, first, skip, size, self._block, self.params, self._phase, f0)

    def _hear(self, count: int) -> None:
        """Bring the first ``count`` raw samples to 16 kHz; the last 5 ms only as what the resampler sees behind."""
        settled = count - self.rate // 200
        new = self._inlet.push(self._raw[:settled], self._raw[settled:count])
        self._raw = self._raw[settled:]
        size = self._frames * HOP + REST
        if self._count == 0:  # before the stream there is its mirrored beginning
            self._heard = mirror(new[::-1], size)[::-1]
        self._heard = np.concatenate([self._heard, new])[-size - 2 * HOP :]

    def _join(self, audio: Audio, samples: int) -> tuple[Audio, Audio]:
        """A block of ``audio``, faded in over the tail of the block before, and its own tail; ``samples`` a frame."""
        fade, block = self._fade * samples, self._block * samples
        offset = 0
        if self._tail is not None:
            offset = sola_offset(self._tail, audio[: fade + SEARCH * samples])
        part = audio[offset : offset + block].copy()
        if self._tail is not None:
            rise = np.sin(np.pi / 2 * (np.arange(fade, dtype=np.float32) + 0.5) / fade) ** 2
            part[:fade] = self._tail * (1 - rise) + part[:fade] * rise
        return part, audio[offset + block : offset + block + fade]


def sola_offset(tail: Audio, head: Audio) -> int:
    """Where in ``head`` (m,) the samples of ``tail`` (n,), n <= m, are found best: 0..m - n.

    The measure is the correlation over the root of the energy in ``head``. Blocks continue each other's phase, so where
    a shift is hardly better than none (by a turn of a steady tone), it is none; and where ``tail`` is silent, which
    brings a stream that was shifted back into step.
    """
    if np.abs(tail).max() <= SILENCE:
        return 0
    head = head.astype(np.float64)
    energy = np.cumsum(np.pad(head**2, (1, 0)))
    alike = np.correlate(head, tail, "valid") / np.sqrt(energy[len(tail) :] - energy[: -len(tail)] + 1e-8)
    best = int(alike.argmax())
    return best if alike[best] > GAIN * alike[0] else 0


class _Resampler:
    """Resamples a stream piece by piece and at once: each piece anew, with what is around it.

    soxr's own streams are up to 40 ms behind, because they filter in long blocks.
    """

    def __init__(self, given: int, made: int) -> None:
        self._given, self._made = given, made
        self._unit = given // math.gcd(given, made)  # after so many samples both rates have one at the same time
        self._held = np.zeros(0, np.float32)
        self.taken = 0  # samples at `given`
        self.sent = 0  # samples at `made`

    def push(self, piece: Audio, ahead: Audio, until: int | None = None) -> Audio:
        """Resample ``piece`` as if ``ahead`` followed it; give the samples up to number ``until`` of the result."""
        begin = self.taken - len(self._held)
        self.taken += len(piece)
        if until is None:
            until = self.taken * self._made // self._given
        held = np.concatenate([self._held, piece])
        made = soxr.resample(np.concatenate([held, ahead]), self._given, self._made, quality="HQ")
        origin = begin * self._made // self._given
        part: Audio = made[self.sent - origin : until - origin]
        part = np.pad(part, (0, until - self.sent - len(part)))  # at the end a sample may be rounded away
        self.sent = until
        keep = max(self.taken - self._given // 50, 0) // self._unit * self._unit
        self._held = held[keep - begin :]
        return part
