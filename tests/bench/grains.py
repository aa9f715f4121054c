"""What it costs to play with grains: a stem against the textbook's loop, libraries, and memory.

``python -m tests.bench grains``; ``SECONDS`` of the stem (240), ``MINUTES`` of the long one (40).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from contrafact.engine.v1 import grains_pb2
from contrafact.v1 import grain_pb2

from servers.grains.building import build
from servers.grains.library import Library, encode
from servers.grains.rendering import Rendering
from servers.grains.trace import Tracing
from tests.bench.common import RATE, Samples, keep, song
from tests.grains.sounds import random_library

SECONDS = float(os.environ.get("SECONDS", "240"))
MINUTES = (4, int(os.environ.get("MINUTES", "40")))
BLOCK = 65_536
STYLE_SECONDS, WARM_SECONDS = 60.0, 10.0
SEGMENTATIONS = ("WHOLE", "ONSETS", "FIXED")

Figures = dict[str, Any]


def style(segmentation: str) -> Library:
    """A minute of music, cut."""
    cut = grain_pb2.Cut(segmentation=f"SEGMENTATION_{segmentation}")  # type: ignore[arg-type]
    return build(song(STYLE_SECONDS, 20.0), RATE, cut, lambda share: None)


class Played:
    """A stem that is traced and rendered as it comes.

    Attributes:
        trace_seconds, render_seconds: CPU time.
    """

    def __init__(self, library: Library, channels: int, frames: int, **settings: Any) -> None:
        spec = grains_pb2.RenderSpec(
            sample_rate=RATE, channels=channels, frames=frames, settings=grain_pb2.GrainSettings(**settings)
        )
        self.trace_seconds = self.render_seconds = 0.0
        self._tracing, self._rendering = Tracing(RATE, channels, frames), Rendering(library, spec)
        self._frames = self.frames = 0

    def add(self, samples: Samples | None) -> None:
        """Take in some of the stem; None: it ended."""
        began = time.process_time()
        notes = self._tracing.finish() if samples is None else self._tracing.process(samples)
        between = time.process_time()
        self.frames += self._rendering.add(notes, self._tracing.until).shape[1]
        if samples is None:
            self.frames += self._rendering.finish().shape[1]
        self.trace_seconds += between - began
        self.render_seconds += time.process_time() - between

    @property
    def report(self) -> grains_pb2.RenderReport:
        """What was played."""
        return self._rendering.report()


def play(library: Library, stem: Samples, **settings: Any) -> Played:
    """All of a stem."""
    played = Played(library, len(stem), stem.shape[1], **settings)
    for first in range(0, stem.shape[1], BLOCK):
        played.add(stem[:, first : first + BLOCK])
    played.add(None)
    assert played.frames == stem.shape[1]
    return played


def costs(work: Callable[[], Any]) -> dict[str, float]:
    """CPU seconds of all threads, and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return {"cpu": round(time.process_time() - cpu, 3), "wall": round(time.perf_counter() - wall, 3)}


def against_the_textbook() -> Figures:
    """Ours on a stereo stem, the textbook's loop on its average, ours again; the mean of ours counts."""
    from tests.grains import textbook  # loads librosa, which would be most of what `play_long` takes

    stem, library = song(SECONDS), style("ONSETS")
    mono = stem.mean(axis=0)
    warm = round(WARM_SECONDS * RATE)
    play(library, stem[:, :warm], shift_pitch=True)
    textbook.imitate(mono[:warm], RATE, library)
    before = costs(lambda: play(library, stem))
    theirs = costs(lambda: textbook.imitate(mono, RATE, library))
    after = costs(lambda: play(library, stem))
    ours = {kind: round((before[kind] + after[kind]) / 2, 3) for kind in before}
    return {
        "seconds_of_stem": SECONDS,
        "grains": len(library),
        "ours": ours,
        "textbook": theirs,
        "times_faster": {kind: round(theirs[kind] / ours[kind], 1) for kind in ours},
        "by_settings": by_settings(library, stem),
    }


def by_settings(library: Library, stem: Samples) -> Figures:
    """CPU seconds of tracing, and of rendering with some settings."""
    asked: dict[str, dict[str, Any]] = {
        "default": {},
        "shift_pitch": {"shift_pitch": True},
        "stretch 1.5": {"stretch": 1.5},
        "density 4": {"density": 4.0},
        "weights and variation": {"variation": 0.3, "level_weight": 1.0, "brightness_weight": 1.0},
    }
    figures: Figures = {}
    for name, settings in asked.items():
        played = play(library, stem, **settings)
        figures["trace"] = round(played.trace_seconds, 3)
        figures[name] = round(played.render_seconds, 3)
        figures["notes"], figures[f"{name}: grains"] = played.report.notes, played.report.grains
    return figures


def building() -> Figures:
    """Seconds for a minute of style in stereo, by segmentation."""
    figures: Figures = {}
    for segmentation in SEGMENTATIONS:
        style(segmentation)
        libraries: list[Library] = []
        spent = costs(lambda how=segmentation, into=libraries: into.append(style(how)))  # type: ignore[misc]
        library = libraries[0]
        figures[segmentation.lower()] = {
            **{f"{kind}_per_minute": round(value * 60 / STYLE_SECONDS, 3) for kind, value in spent.items()},
            "grains": len(library),
            "pitched": int(np.count_nonzero(library.pitches)),
            "kib": round(len(encode(library)) / 1024),
        }
    return figures


def memory() -> Figures:
    """Peak MiB of processes that trace and render a short and a long stem."""
    peaks = {}
    for minutes in MINUTES:
        program = f"from tests.bench.grains import play_long; play_long({minutes})"
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        peaks[f"{minutes} min"] = float(done.stdout)
    short, long = peaks.values()
    return {"peak_mib": peaks, "growth_mib": round(long - short, 1)}


def play_long(minutes: int) -> None:
    """Play so many minutes, made of one; print the peak memory in MiB."""
    library, minute = random_library(np.random.default_rng(0), 500, channels=2), song(60.0)
    played = Played(library, len(minute), minutes * minute.shape[1], spread=1.0, variation=0.2)
    for second in range(60 * minutes):
        at = second % 60 * RATE
        played.add(minute[:, at : at + RATE])
    played.add(None)
    status = Path("/proc/self/status").read_text()
    print(round(int(status.split("VmHWM:")[1].split()[0]) / 1024, 1))


def measure() -> None:
    """Measure all and keep it."""
    keep("grains", {"stem": against_the_textbook(), "building": building(), "memory": memory()})
