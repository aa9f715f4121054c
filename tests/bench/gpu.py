"""The models on a GPU, with generated weights: nothing but this source tree is needed.

    python -m tests.bench.gpu [--parts htdemucs,rvc,triton] [--cpu] [--quick] [--minutes 9] [--rounds 20]

Prints rows as they come, to standard error, and all of them as JSON, which is also written to ``$OUT/gpu.json`` after
each part. What is missing on a machine is said and left out. The parts need

* ``rvc``: torch, transformers, scipy, soxr and faiss-cpu;
* ``triton``: also nvidia-pytriton, tritonclient, minio, filelock and swift-f0: see ``gpu_triton``;
* ``htdemucs``: torch, demucs, safetensors and filelock.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.bench.gpu_timing import Run

PARTS = ("rvc", "triton", "htdemucs")


def measure(part: str, run: Run) -> Any:
    """The rows of one part, or why there are none."""
    try:
        if part != "htdemucs" and not (run.folder / "voice.pth").exists():
            importlib.import_module("tests.bench.gpu_rvc").make_weights(run)
        return importlib.import_module(f"tests.bench.gpu_{part}").measure(run)
    except Exception as error:
        print(f"{part}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return {"failed": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--cpu", action="store_true", help="although there may be a GPU")
    parser.add_argument("--quick", action="store_true", help="a little of everything, only to see that it runs")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which nothing more is begun")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if unknown := set(options.parts.split(",")) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    device = "cpu" if options.cpu else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use; --cpu measures without")
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "quick": options.quick,
    }
    with tempfile.TemporaryDirectory(prefix="contrafact-gpu-") as folder:
        until = time.monotonic() + 60 * options.minutes
        run = Run(device, 1 if options.quick else options.rounds, options.quick, Path(folder), until)
        for part in options.parts.split(","):
            result[part] = measure(part, run)
            result["no_time_for"] = run.skipped
            if out := os.environ.get("OUT"):
                (Path(out) / "gpu.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
