"""What an analysis costs: CPU seconds of each feature, beside librosa and essentia; memory of short and long ones.

``python -m tests.bench.analysis.speed``; ``SECONDS`` of music (180), ``MINUTES`` of the long analysis (120).
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import librosa
import numpy as np
import psutil

from servers.analyzer.analysis import Analysis, warm_up
from tests.bench.common import RATE, Samples, song

SECONDS = float(os.environ.get("SECONDS", "180"))
MINUTES = int(os.environ.get("MINUTES", "120"))


def ours(music: Samples) -> dict[str, float]:
    """CPU seconds by feature, and of the whole."""
    warm_up()
    analysis = Analysis(RATE, len(music), music.shape[1])
    began = time.process_time()
    for start in range(0, music.shape[1], analysis.chunk_frames):
        _feed(analysis, analysis.native.process(music[:, start : start + analysis.chunk_frames]))
    _feed(analysis, analysis.native.rest())
    for lane in (analysis.native, *analysis.others):
        list(lane.results())
    whole = time.process_time() - began
    return {**{name.lower(): seconds for name, seconds in analysis.cpu_seconds().items()}, "all": whole}


def _feed(analysis: Analysis, mono: Samples) -> None:
    for lane in analysis.others:
        lane.process(mono)


def naive(music: Samples) -> dict[str, float]:
    """CPU seconds of what one would write: librosa's functions, each by itself, and pyloudnorm where it is."""
    mono = librosa.resample(music.mean(axis=0), orig_sr=RATE, target_sr=22_050, res_type="soxr_hq")
    low, high = float(librosa.note_to_hz("C1")), float(librosa.note_to_hz("C7"))
    parts: dict[str, Callable[[], Any]] = {
        "librosa onset_detect": lambda: librosa.onset.onset_detect(y=mono, sr=22_050),
        "librosa beat_track": lambda: librosa.beat.beat_track(y=mono, sr=22_050),
        "librosa chroma_cqt": lambda: librosa.feature.chroma_cqt(y=mono, sr=22_050),
        "librosa pyin": lambda: librosa.pyin(mono, fmin=low, fmax=high, sr=22_050),
    }
    seconds = {}
    for name, call in parts.items():
        if "pyin" not in name:
            call()  # compiles
        seconds[name] = cpu_seconds(call)
    if importlib.util.find_spec("pyloudnorm"):
        meter = importlib.import_module("pyloudnorm").Meter(RATE)
        seconds["pyloudnorm"] = cpu_seconds(lambda: meter.integrated_loudness(music.T.astype(np.float64)))
    return seconds | {"all": sum(seconds.values())}


def essentia(music: Samples) -> dict[str, float]:
    """CPU seconds of essentia's pieces; nothing where it is not installed."""
    try:
        standard = importlib.import_module("essentia.standard")
    except ImportError:
        return {}
    mono = music.mean(axis=0)
    parts: dict[str, Callable[[], Any]] = {
        "essentia OnsetRate": lambda: standard.OnsetRate()(mono),
        "essentia RhythmExtractor2013": lambda: standard.RhythmExtractor2013()(mono),
        "essentia KeyExtractor": lambda: standard.KeyExtractor()(mono),
        "essentia PitchYinProbabilistic": lambda: standard.PitchYinProbabilistic()(mono),
        "essentia LoudnessEBUR128": lambda: standard.LoudnessEBUR128()(music.T.copy()),
    }
    seconds = {name: cpu_seconds(call) for name, call in parts.items()}
    return seconds | {"all": sum(seconds.values())}


def cpu_seconds(call: Callable[[], Any]) -> float:
    """Of one call, in all threads."""
    began = time.process_time()
    call()
    return time.process_time() - began


def resident_mib(minutes: int) -> float:
    """Peak memory of a process that analyses so much music, fed a second at a time."""
    program = f"from tests.bench.analysis.speed import long_analysis; long_analysis({minutes})"
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    return float(output)


def long_analysis(minutes: int) -> None:
    """Analyse so many minutes, made of one; print the peak memory in MiB."""
    minute, process, peak = song(60.0), psutil.Process(), 0
    analysis = Analysis(RATE, len(minute), minutes * minute.shape[1])
    for second in range(60 * minutes):
        at = second % 60 * RATE
        _feed(analysis, analysis.native.process(minute[:, at : at + analysis.chunk_frames]))
        peak = max(peak, process.memory_info().rss)
    _feed(analysis, analysis.native.rest())
    for lane in (analysis.native, *analysis.others):
        for _ in lane.results():
            peak = max(peak, process.memory_info().rss)
    print(peak / 2**20)


def table() -> dict[str, Any]:
    """Measure: CPU seconds of ours and theirs, times real time, and memory."""
    music = song(SECONDS)
    mine, librosas, essentias = ours(music), naive(music), essentia(music)
    short, long = resident_mib(3), resident_mib(MINUTES)
    return {
        "seconds_of_music": SECONDS,
        "cpu_seconds": {name: round(value, 3) for name, value in mine.items()},
        "times_real_time": {name: round(SECONDS / value) for name, value in mine.items() if value > 0},
        "librosa": {name: round(value, 3) for name, value in librosas.items()},
        "essentia": {name: round(value, 3) for name, value in essentias.items()},
        "times_librosa": round(librosas["all"] / mine["all"], 1),
        "times_essentia": round(essentias["all"] / mine["all"], 1) if essentias else None,
        "peak_mib": {"3 min": round(short, 1), f"{MINUTES} min": round(long, 1)},
        "growth_mib": round(long - short, 1),
    }


if __name__ == "__main__":
    print(json.dumps(table(), indent=2))
