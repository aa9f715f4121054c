"""What the measurements share: a song, results, and the machine they were made on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
SONG = ROOT.parent / "shared" / "audio" / "Karissa_Hobbs_-_Lets_Go_Fishin.hq.ogg"
RATE = 44_100

Samples = NDArray[np.float32]


def song(seconds: float, start: float = 0.0) -> Samples:
    """Stereo music [2, frames] at 44.1 kHz: a real song where there is one, repeated if need be, else synthetic."""
    if SONG.exists():
        samples, rate = soundfile.read(SONG, dtype="float32", always_2d=True)
        assert rate == RATE
        music = samples.T
    else:
        from servers.media.synthetic import make_stems

        music = np.sum(list(make_stems(seconds=60.0, sample_rate=RATE, seed=0).values()), axis=0)
    first, frames = round(start * RATE), round(seconds * RATE)
    repeated = np.tile(music, (1, -(-(first + frames) // music.shape[1])))
    return np.ascontiguousarray(repeated[:, first : first + frames], np.float32)


def keep(name: str, result: dict[str, Any]) -> None:
    """Print a result and write it to ``results/NAME.json``."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    result = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "music": "real song" if SONG.exists() else "synthetic",
        **result,
    }
    text = json.dumps(result, indent=2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(f"{name}: {text}", flush=True)
