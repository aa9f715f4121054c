"""Speed of the htdemucs network on one device, as the model serves it, with random weights: no files are needed.

    python -m tests.bench.gpu [--device cuda] [--dtypes float32,tf32,bfloat16] [--batches 1,4,8] [--compile]

Prints segments a second and × real time (a segment advances a track by 5.85 s) per dtype and batch size, with the
peak of device memory and the distance of each dtype from float32, as JSON. Needs torch, demucs and safetensors.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
# The model's own modules, found as Triton's python backend finds them.
sys.path[:0] = [str(ROOT / "model_repository" / "htdemucs" / "1"), str(ROOT / "model_repository")]

STRIDE_SECONDS = 5.85


def random_weights(path: Path) -> Path:
    """A checkpoint of the right names and shapes."""
    from demucs.htdemucs import HTDemucs
    from safetensors.torch import save_file
    from weights import htdemucs  # type: ignore[import-not-found]

    torch.manual_seed(0)
    state = HTDemucs(**htdemucs.ARCHITECTURE).state_dict()
    save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, path)
    return path


def measure(weights: Path, device: str, dtype: str, batch: int, compiled: bool, rounds: int) -> dict[str, Any]:
    """Median time of a batch, and the answer to the first of its segments."""
    from network import SEGMENT, Separator  # type: ignore[import-not-found]
    from settings import Settings  # type: ignore[import-not-found]

    settings = Settings(device=device, backend="torch", dtype=dtype, threads=torch.get_num_threads(), compile=compiled)
    separator = Separator(weights, settings)
    mix = torch.from_numpy(np.random.default_rng(0).standard_normal((batch, 2, SEGMENT)).astype(np.float32))
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    answer = separator(mix)  # warm up: kernels are chosen, or compiled
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        separator(mix)
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times)
    return {
        "dtype": dtype,
        "batch": batch,
        "compiled": compiled,
        "batch_ms": round(seconds * 1e3, 2),
        "times_real_time": round(batch * STRIDE_SECONDS / seconds, 1),
        "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "answer": answer[0].numpy(),
    }


def main() -> None:
    """Run all combinations that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", default="float32,tf32,bfloat16,float16")
    parser.add_argument("--batches", default="1,4,8,16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        weights = random_weights(Path(folder) / "htdemucs.safetensors")
        for dtype in options.dtypes.split(","):
            for batch in map(int, options.batches.split(",")):
                result = measure(weights, options.device, dtype, batch, options.compile, options.rounds)
                reference = results[0]["answer"] if results else result["answer"]
                error = np.square(result["answer"] - reference).sum()
                result["db_from_first"] = (
                    None if error == 0 else round(float(10 * np.log10(np.square(reference).sum() / error)), 1)
                )
                results.append(result)
                print({key: value for key, value in result.items() if key != "answer"}, file=sys.stderr, flush=True)
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    for result in results:
        del result["answer"]
    print(json.dumps({"device": name, "torch": torch.__version__, "results": results}, indent=2))


if __name__ == "__main__":
    main()
