"""What the measurements on a GPU share: one run, times and distances."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """How everything is measured.

    device: ``cuda`` or ``cpu``. rounds: of each time. quick: a small part, only to see that it runs.
    folder: for generated weights. until: on the monotonic clock, when nothing more is begun.
    """

    device: str
    rounds: int
    quick: bool
    folder: Path
    until: float
    skipped: list[str] = field(default_factory=list)

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.startswith("cuda")

    def seconds(self, work: Callable[[], object]) -> float:
        """Median time of ``work``, which has run before, everything that it begins on the GPU included."""
        times = []
        for _ in range(self.rounds):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    def wait(self) -> None:
        """Until the GPU has done everything."""
        if self.cuda:
            torch.cuda.synchronize()

    def collect(self, rows: Iterable[tuple[str, Callable[[], Row]]]) -> list[Row]:
        """All rows, printed as they come. What fails is a row too; what there is no time for is only named."""
        found: list[Row] = []
        for name, make in rows:
            if time.monotonic() > self.until:
                self.skipped.append(name)
                continue
            try:
                row = {"what": name, **make()}
            except Exception as error:  # another version of a library, or no memory: the rest is worth having
                row = {"what": name, "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            finally:
                if self.cuda:
                    torch.cuda.empty_cache()
            found.append(row)
            print(row, file=sys.stderr, flush=True)
        return found

    def start_memory(self) -> None:
        """Begin to watch the peak of the GPU's memory."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def memory_gib(self) -> float | None:
        """The peak since then; None on a CPU."""
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.cuda else None


def snr(reference: NDArray[Any], found: NDArray[Any]) -> float | None:
    """Signal-to-noise ratio in dB; None if they are equal."""
    error = np.square(reference.astype(np.float64) - found).sum()
    return None if error == 0 else round(float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / error)), 1)


def exact(tf32: bool) -> None:
    """Let matrix products and convolutions in single precision be rounded to TF32, or not."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
