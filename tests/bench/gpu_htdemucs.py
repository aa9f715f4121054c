"""The htdemucs network alone, as the model serves it, with random weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.bench.gpu_timing import Row, Run, snr

# The model's own modules, found as Triton's python backend finds them.
_REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
sys.path[:0] = [str(_REPOSITORY / "htdemucs" / "1"), str(_REPOSITORY)]

STRIDE_SECONDS = 5.85  # by which a segment advances a track
DTYPES, BATCHES = ("float32", "tf32", "bfloat16", "float16"), (1, 4, 8, 16)


def random_weights(path: Path) -> Path:
    """A checkpoint of the right names and shapes."""
    from demucs.htdemucs import HTDemucs
    from safetensors.torch import save_file
    from weights import htdemucs  # type: ignore[import-not-found]

    torch.manual_seed(0)
    state = HTDemucs(**htdemucs.ARCHITECTURE).state_dict()
    save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, path)
    return path


def measure(run: Run) -> list[Row]:
    """Time of a batch and × real time by dtype and batch size, and how far each dtype is from the first."""
    weights = random_weights(run.folder / "htdemucs.safetensors")
    answers: list[NDArray[Any]] = []
    return run.collect(_rows(run, weights, answers))


def _rows(run: Run, weights: Path, answers: list[NDArray[Any]]) -> Iterator[tuple[str, Callable[[], Row]]]:
    for compiled in (False, True) if run.cuda else (False,):
        for dtype in DTYPES if run.cuda else DTYPES[:1]:
            for batch in BATCHES[:1] if run.quick else BATCHES:
                name = f"htdemucs {dtype}{' compiled' * compiled}, batch of {batch}"
                yield name, partial(_row, run, weights, dtype, batch, compiled, answers)


def _row(run: Run, weights: Path, dtype: str, batch: int, compiled: bool, answers: list[NDArray[Any]]) -> Row:
    from network import SEGMENT, Separator  # type: ignore[import-not-found]
    from settings import Settings  # type: ignore[import-not-found]

    threads = torch.get_num_threads()
    settings = Settings(device=run.device, backend="torch", dtype=dtype, threads=threads, compile=compiled)
    separator = Separator(weights, settings)
    mix = torch.from_numpy(np.random.default_rng(0).standard_normal((batch, 2, SEGMENT)).astype(np.float32))
    run.start_memory()
    answers.append(separator(mix)[0].numpy())
    seconds = run.seconds(lambda: separator(mix))
    return {
        "batch_ms": round(seconds * 1e3, 2),
        "times_real_time": round(batch * STRIDE_SECONDS / seconds, 1),
        "memory_gib": run.memory_gib(),
        "snr_db": snr(answers[0], answers[-1]),
    }
