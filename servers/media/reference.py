"""librosa, loaded by one process at a time."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock


@cache
def librosa() -> Any:
    """The package, all of it that numba compiles when it is imported.

    That takes a quarter of a minute the first time; numba keeps the result on disk for later processes. When two do it
    at once, what is kept crashes all processes after them (numba 0.68, dynamic universal functions).
    """
    with FileLock(Path(tempfile.gettempdir()) / f"contrafact-librosa-{os.getuid()}.lock"):
        for part in ("core.audio", "core.pitch", "util.utils", "onset", "beat", "feature", "filters", "effects"):
            import_module(f"librosa.{part}")
        return import_module("librosa")
