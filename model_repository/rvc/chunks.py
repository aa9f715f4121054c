"""Chunks: how a stream of any length becomes fixed-length work for the model, and one stream again. NumPy only.

Frames are 10 ms: 160 samples at 16 kHz. A chunk is ``before`` frames of context, ``core`` frames, ``after`` frames of
context:

    |  before  |            core            |  after  |
                                     |  before  |            core            |  after  |
               [ what it yields ............][fade]
                                                [ what the next one yields .......][fade]

Cores lie at multiples of ``core`` frames, so frame k of the input is always frame k of the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import soxr
from numpy.typing import NDArray

RATE = 16_000
HOP = 160
REST = 80  # samples that the content encoder needs beyond 2 frames each, to yield exactly one feature for each two
REACH = 35  # frames of latent on which a frame of audio depends, to either side: 24 of the flow, 11 of the decoder
SILENCE = 10 ** (-70 / 20)  # a peak: what is below it nobody hears, and a model would turn it into breath

Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Geometry:
    """Sizes in frames of 10 ms; ``before``, ``core`` and ``after`` are even, because a content feature has two.

    Delay of a stream: ``core + after`` frames (and 5 ms), less with a short core, at more cost per second.
    """

    core: int = 400
    before: int = 100
    after: int = 100
    fade: int = 5

    def __post_init__(self) -> None:
        if any(n % 2 for n in (self.core, self.before, self.after)):
            raise ValueError(f"core, before and after are even numbers of frames: {self}")
        if not 1 <= self.fade <= self.core or self.before < REACH or self.after < REACH + self.fade:
            text = f"needs 1 <= fade <= core, before >= {REACH}, after >= {REACH} + fade"
            raise ValueError(f"{text}: {self}")

    @property
    def frames(self) -> int:
        """Of a chunk."""
        return self.before + self.core + self.after

    @property
    def samples(self) -> int:
        """Of a chunk, at 16 kHz."""
        return self.frames * HOP + REST


DEFAULT = Geometry()


@dataclass(frozen=True)
class Params:
    """How a chunk is converted; ranges are checked.

    key: semitones, -36..36. method: of pitch; empty: the best there is. smoothing: frames of the pitch's running
    median, odd, 1..101.
    index_rate: 0..1, how much of retrieval. exact: search the whole index. protect: 0..0.5: what unvoiced frames get of
    retrieval; 0.5: as all others. speaker: of the voice. seed: of the noise; the same seed gives the same audio.
    """

    key: float = 0.0
    method: str = ""
    smoothing: int = 1
    index_rate: float = 0.75
    exact: bool = False
    protect: float = 0.33
    speaker: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("key", -36, 36),
            ("smoothing", 1, 101),
            ("index_rate", 0, 1),
            ("protect", 0, 0.5),
            ("speaker", 0, 1 << 20),
            ("seed", 0, (1 << 63) - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}, must be {low}..{high}")
        if self.smoothing % 2 == 0:
            raise ValueError(f"smoothing is {self.smoothing}, must be odd")


@dataclass(frozen=True)
class Chunk:
    """One piece of work.

    Attributes:
        audio: 16 kHz, (Geometry.samples,).
        first: number of its first core frame in the stream.
        frames: of the core that are the stream's; fewer than ``core`` in the last chunk.
        params: see there.
        phase: of the sine at the first core frame, in cycles; None: as the chunk before it in its batch leaves it.
        f0: Hz, 0 where unvoiced, (Geometry.frames,), before the key shift; None: estimate it.
    """

    audio: Audio
    first: int
    frames: int
    params: Params = field(default_factory=Params)
    phase: float | None = 0.0
    f0: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Converted:
    """What became of a chunk.

    Attributes:
        audio: of core and fade, at the voice's rate.
        phase: of the sine at the end of the core, in cycles, which is where the next chunk begins.
        f0: the singer's, Hz, (core,), before the key shift; zeros if the voice does not use it.
    """

    audio: Audio
    phase: float
    f0: NDArray[np.float64]


def is_silent(chunk: Chunk) -> bool:
    """Whether nothing in a chunk, context included, is louder than -70 dBFS: `silence` may stand for its conversion."""
    return float(np.abs(chunk.audio).max(initial=0)) <= SILENCE


def silence(geometry: Geometry, rate: int, phase: float) -> Converted:
    """What stands for a silent chunk's conversion, without a model.

    Args:
        geometry: of the chunks.
        rate: samples a second of the voice.
        phase: that the chunk would have begun with; it ends with the same, because without pitch the sine stands.
    """
    audio = np.zeros((geometry.core + geometry.fade) * rate // 100, np.float32)
    return Converted(audio, phase, np.zeros(geometry.core))


class Cutter:
    """Cuts mono audio of any rate into chunks. Holds at most one chunk and what one `push` brings.

    Args:
        rate: samples a second of what is pushed.
        geometry: of the chunks.
        params: of the chunks.
    """

    def __init__(self, rate: int, geometry: Geometry, params: Params) -> None:
        if not 1000 <= rate <= 1_000_000:
            raise ValueError(f"rate is {rate}, must be 1000..1000000")
        self.rate, self.geometry, self.params = rate, geometry, params
        self.pushed = 0  # samples, at `rate`
        self._resample = None if rate == RATE else soxr.ResampleStream(rate, RATE, 1, dtype="float32", quality="HQ")
        self._held = np.zeros(0, np.float32)
        self._start = 0  # of what is held, in the stream
        self._next = 0  # first core frame of the next chunk

    def push(self, block: Audio, last: bool = False) -> list[Chunk]:
        """Take a block (n,) and give the chunks that it completes; with ``last``, all that remain.

        Raises:
            ValueError: the block is not mono or contains NaN or infinity.
        """
        if block.ndim != 1 or not np.isfinite(block).all():
            raise ValueError("a block is one-dimensional and finite")
        self.pushed += len(block)
        block = block.astype(np.float32, copy=False)
        if self._resample is not None:
            block = self._resample.resample_chunk(block, last=last)
        self._held = np.concatenate([self._held, block])
        g, chunks = self.geometry, []
        while self._start + len(self._held) >= (self._next + g.core + g.after) * HOP + REST:
            chunks.append(self._chunk(g.core))
        if last:
            total = -(-self.pushed * 100 // self.rate)
            # Behind the end comes the mirrored end, then silence.
            silence = np.zeros((g.core + g.frames) * HOP, np.float32)
            self._held = np.concatenate([self._held, mirror(self._held, g.after * HOP), silence])
            while self._next < total:
                chunks.append(self._chunk(min(g.core, total - self._next)))
        return chunks

    def _chunk(self, frames: int) -> Chunk:
        g = self.geometry
        begin = (self._next - g.before) * HOP - self._start
        audio = self._held[max(begin, 0) : begin + g.samples]
        if begin < 0:  # only the first chunk's: before the stream there is its mirrored beginning
            audio = np.concatenate([mirror(audio[::-1], -begin)[::-1], audio])
        chunk = Chunk(audio.copy(), self._next, frames, self.params)
        self._next += g.core
        done = max((self._next - g.before) * HOP - self._start, 0)
        self._held, self._start = self._held[done:], self._start + done
        return chunk


def mirror(audio: Audio, count: int) -> Audio:
    """The ``count`` samples behind ``audio`` if it were reflected at its end, again and again if it is short."""
    if len(audio) < 2:
        return np.full(count, audio[-1] if len(audio) else 0.0, np.float32)
    period = 2 * (len(audio) - 1)
    places = np.arange(len(audio), len(audio) + count) % period
    mirrored: Audio = audio[np.minimum(places, period - places)]
    return mirrored


class Joiner:
    """Joins converted chunks, in order, to a stream that is exactly as long as the one that was cut.

    Both sides of a join are the same frames, made with the same noise and phase; what differs is the context that the
    content encoder saw. A cross-fade hides that.

    Args:
        given: samples a second of what was cut.
        made: samples a second of the voice.
        wanted: samples a second of the result.
        geometry: of the chunks.
    """

    def __init__(self, given: int, made: int, wanted: int, geometry: Geometry) -> None:
        self.given, self.made, self.wanted, self.geometry = given, made, wanted, geometry
        self._resample = None
        if wanted != made:
            self._resample = soxr.ResampleStream(made, wanted, 1, dtype="float32", quality="HQ")
        fade = geometry.fade * made // 100
        self._rise = (np.sin(np.pi / 2 * (np.arange(fade) + 0.5) / fade) ** 2).astype(np.float32)
        self._tail: Audio | None = None
        self._joined = 0  # samples at `made`
        self._sent = 0  # samples at `wanted`

    def push(self, audio: Audio) -> Audio:
        """Take a chunk's audio (of core and fade) and give what is now certain: the core."""
        core, fade = self.geometry.core * self.made // 100, len(self._rise)
        if audio.shape != (core + fade,):
            raise ValueError(f"a converted chunk has {core + fade} samples, not {audio.shape}")
        part = audio[:core].copy()
        if self._tail is not None:
            part[:fade] = self._tail * (1 - self._rise) + part[:fade] * self._rise
        self._tail = audio[core:]
        return part

    def send(self, part: Audio, pushed: int | None = None) -> Audio:
        """Resample what `push` gave.

        Args:
            part: as given by `push`, in order; perhaps with another loudness.
            pushed: at the end: samples that were cut in all. The result is cut to their length.
        """
        if pushed is not None:
            part = part[: max(length(pushed, self.given, self.made) - self._joined, 0)]
        self._joined += len(part)
        if self._resample is not None:
            part = self._resample.resample_chunk(part, last=pushed is not None)
        if pushed is not None:
            rest = length(pushed, self.given, self.wanted) - self._sent
            # A resampler may round its last sample away.
            part = np.pad(part, (0, max(rest - len(part), 0)))[:rest]
        self._sent += len(part)
        return part


def length(samples: int, given: int, wanted: int) -> int:
    """``samples`` at rate ``given`` in samples at rate ``wanted``, rounded."""
    return round(Fraction(samples * wanted, given))
