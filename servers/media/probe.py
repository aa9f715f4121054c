"""Exact facts about an uploaded file, found by decoding all of it in bounded memory.

``probe`` runs in this process; servers use :func:`probe_isolated`, which runs it in a child that a hostile
file may crash, bloat or hang without harm. ``python -m servers.media.probe PATH --max-seconds N`` prints one
line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import resource
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from servers.media.blocks import Block
from servers.media.errors import MediaError, Reason
from servers.media.source import Source

DEFAULT_MEMORY_BYTES = 1 << 30
_MAX_ANSWER_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class TrackFacts:
    """What is known about a track.

    Attributes:
        container: ``mp3``, ``mp4``, ``flac``, ``ogg``, ``wav``, ``aiff`` or ``adts``.
        codec: ``mp3``, ``aac``, ``alac``, ``flac``, ``vorbis``, ``opus`` or ``pcm_*``.
        extension: for storage, without a dot: ``mp3``, ``m4a``, ``flac``, ``ogg``, ``wav``, ``aiff``,
            ``aac``.
        sample_rate: Hz.
        channels: of the file, 1 to 8; :func:`servers.media.decode.decode` delivers at most 2.
        frames: per channel, exactly as many as ``decode`` delivers.
        bit_depth: bits per sample for PCM and lossless codecs.
        mean, std: of the mono downmix (the mean of the 1 or 2 decoded channels), in float64; ``std`` has one
            degree of freedom less than frames, as ``torch.std``, and is 0 for a single frame. They are
            ``ref.mean()`` and ``ref.std()`` with ``ref = wav.mean(0)`` in ``demucs.separate``.
        peak: largest absolute value of the decoded channels; may exceed 1.
    """

    container: str
    codec: str
    extension: str
    sample_rate: int
    channels: int
    frames: int
    bit_depth: int | None
    mean: float
    std: float
    peak: float


class _Statistics:
    """Mean and variance in one pass over blocks (Chan, Golub & LeVeque 1983, pairwise update)."""

    def __init__(self) -> None:
        self.frames = 0
        self.mean = 0.0
        self.peak = 0.0
        self._squares = 0.0  # sum of squared deviations from the mean

    def add(self, block: Block) -> None:
        peak = float(np.abs(block.samples).max())
        if not math.isfinite(peak):
            raise MediaError(
                Reason.NON_FINITE_AUDIO, "The audio contains values that are not numbers (NaN or infinity)."
            )
        mono = block.samples.mean(axis=0, dtype=np.float64)
        mean = float(mono.mean())
        squares = float(np.square(mono - mean).sum())
        total = self.frames + block.frames
        shift = mean - self.mean
        self._squares += squares + shift * shift * self.frames * block.frames / total
        self.mean += shift * block.frames / total
        self.frames = total
        self.peak = max(self.peak, peak)

    @property
    def std(self) -> float:
        return math.sqrt(self._squares / (self.frames - 1)) if self.frames > 1 else 0.0


def probe(path: str | os.PathLike[str], *, max_seconds: float) -> TrackFacts:
    """Decode a whole file and return its facts.

    Raises:
        MediaError: not acceptable audio; ``TOO_LONG`` as soon as ``max_seconds`` are exceeded.
        OSError: the file cannot be read.
    """
    statistics = _Statistics()
    with Source(path) as source:
        limit = max_seconds * source.sample_rate
        for block in source.blocks():
            if block.end > limit:
                raise MediaError(Reason.TOO_LONG, f"The audio is longer than {max_seconds:g} seconds.")
            statistics.add(block)
        return TrackFacts(
            container=source.container.value,
            codec=source.codec,
            extension=source.extension,
            sample_rate=source.sample_rate,
            channels=source.channels,
            frames=statistics.frames,
            bit_depth=source.bit_depth,
            mean=statistics.mean,
            std=statistics.std,
            peak=statistics.peak,
        )


async def probe_isolated(
    path: str | os.PathLike[str],
    *,
    max_seconds: float,
    timeout: float,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> TrackFacts:
    """Run :func:`probe` in a child process with limits; it is dead when this returns, raises or is cancelled.

    Args:
        timeout: seconds of wall clock; CPU time is limited to the same.
        memory_bytes: address space of the child (190 MB of it are libraries).

    Raises:
        MediaError: as :func:`probe`; also ``PROBE_TIMEOUT`` and ``PROBE_CRASHED``.
    """
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-s", "-B", "-m", "servers.media.probe", os.path.abspath(path)]
    command += ["--max-seconds", repr(float(max_seconds)), "--memory-bytes", str(memory_bytes)]
    command += ["--cpu-seconds", str(math.ceil(timeout) + 1)]
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        # No secrets of the server reach the child, and BLAS does not spend the limits on threads.
        env={"PYTHONPATH": root, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"},
        start_new_session=True,
        cwd="/",
    )
    try:
        async with asyncio.timeout(timeout):
            assert child.stdout is not None
            answer = await _read_answer(child.stdout)
            status = await child.wait()
    except TimeoutError:
        raise MediaError(Reason.PROBE_TIMEOUT, "The file takes too long to examine.") from None
    finally:
        await _kill(child)
    if status == -signal.SIGXCPU:
        raise MediaError(Reason.PROBE_TIMEOUT, "The file takes too long to examine.")
    return _parse_answer(answer)


async def _read_answer(stream: asyncio.StreamReader) -> bytes:
    # A child that a file has taken over could talk without end.
    answer = b""
    while len(answer) <= _MAX_ANSWER_BYTES and (data := await stream.read(_MAX_ANSWER_BYTES)):
        answer += data
    return answer


async def _kill(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        # Reaping a killed process takes milliseconds; a second cancellation must not leave a zombie.
        await asyncio.shield(child.wait())


def _parse_answer(answer: bytes) -> TrackFacts:
    try:
        parsed = json.loads(answer)
        if "error" in parsed:
            raise MediaError(Reason(parsed["error"]["reason"]), str(parsed["error"]["message"]))
        return TrackFacts(**parsed)
    except (ValueError, TypeError, KeyError):
        raise MediaError(Reason.PROBE_CRASHED, "Examining the file failed; it is probably damaged.") from None


def _limit(memory_bytes: int | None, cpu_seconds: int | None) -> None:
    """Limit this process. Done by the child itself: a ``preexec_fn`` could deadlock in a threaded server."""
    limits = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 64}
    if memory_bytes is not None:
        limits[resource.RLIMIT_AS] = memory_bytes
    if cpu_seconds is not None:
        # The soft limit's signal tells the parent the cause; the hard limit's SIGKILL would not.
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


def main(arguments: list[str] | None = None) -> int:
    """Print facts or ``{"error": {"reason", "message"}}`` as one line of JSON; exit with 0 or 1."""
    parser = argparse.ArgumentParser(prog="python -m servers.media.probe", description="Facts about an audio file.")
    parser.add_argument("path")
    parser.add_argument("--max-seconds", type=float, default=math.inf)
    parser.add_argument("--memory-bytes", type=int, help="limit the address space of this process")
    parser.add_argument("--cpu-seconds", type=int, help="limit the CPU time of this process")
    options = parser.parse_args(arguments)
    if options.memory_bytes is not None or options.cpu_seconds is not None:
        _limit(options.memory_bytes, options.cpu_seconds)
    try:
        answer: dict[str, object] = asdict(probe(options.path, max_seconds=options.max_seconds))
    except MediaError as error:
        answer = {"error": {"reason": error.reason, "message": error.message}}
    except MemoryError:
        answer = {"error": {"reason": Reason.PROBE_CRASHED, "message": "The file needs too much memory to examine."}}
    except OSError as error:
        answer = {"error": {"reason": Reason.PROBE_CRASHED, "message": f"Cannot read the file: {error.strerror}."}}
    print(json.dumps(answer))
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
