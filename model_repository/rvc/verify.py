"""Verify a stranger's voice in a process of limited rights: ``python -m model_repository.rvc.verify WEIGHTS``.

It prints one line of JSON and exits with 0: either ``{"ok": true, ...}`` with what `Voice.describe` says, or
``{"ok": false, "reason": "UPPER_SNAKE", "message": "..."}``. Anything else (a signal, another status, no line) means
that the file broke the process, which is why it has one of its own. Give it a pipe for its output: it cannot write to
files.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

MEMORY = 4 << 30  # bytes of data; torch itself needs about 300 MB, the largest accepted files 3 GB
CPU_SECONDS = 60


def _limit() -> None:
    """Take this process's rights. It does so itself: a ``preexec_fn`` could deadlock in a threaded server."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    sys.dont_write_bytecode = True
    # Libraries look for folders to write to when they are imported, and fail if there are none; this one exists.
    tempfile.tempdir = os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.sep
    for kind, value in (
        (resource.RLIMIT_DATA, MEMORY),  # not the address space: torch maps far more than it uses
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CPU, CPU_SECONDS),
    ):
        resource.setrlimit(kind, (value, value))


def _verify(weights: Path, index: Path | None) -> dict[str, Any]:
    for path, what in ((weights, "weights"), (index, "index")):
        # A link or a pipe would let an upload read, or wait for, something that is not its own.
        if path is not None and (path.is_symlink() or not path.is_file()):
            return _refusal("NOT_A_FILE", f"the {what} are no regular file")
    import torch

    from .checkpoint import CheckpointError
    from .voice import load, out_of_memory, try_out

    torch.set_num_threads(1)
    # All libraries are loaded. From here on even a file that executes code could not start a process (root could).
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    try:
        voice = load(weights, index)
        try_out(voice)
    except CheckpointError as error:
        return _refusal(error.reason, str(error))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return _refusal("TOO_LARGE", "the voice needs more memory than is accepted")
    return {"ok": True, **voice.describe()}


def _refusal(reason: str, message: str) -> dict[str, Any]:
    return {"ok": False, "reason": reason, "message": message}


def main() -> None:
    """Print the verdict on the files that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m model_repository.rvc.verify", description="Verify a voice.")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--index", type=Path)
    options = parser.parse_args()
    _limit()
    print(json.dumps(_verify(options.weights, options.index)), flush=True)


if __name__ == "__main__":
    main()
