"""Named tensors as one canonical safetensors file: the same tensors are always the same bytes.

The safetensors library leaves tensor order and padding to itself, so a pinned checksum needs its own writer.
Format, from that library's documentation: 8-byte little-endian header length, JSON header, data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._errors import WeightsCorrupt

_DTYPES = {"float16": "F16", "float32": "F32", "int64": "I64"}


def write(file: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write ``tensors`` (float16, float32 or int64) sorted by name, without metadata."""
    header: dict[str, dict[str, object]] = {}
    offset = 0
    for name in sorted(tensors):
        array = tensors[name]
        header[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data must start on a multiple of eight bytes
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little"))
        out.write(text)
        for name in sorted(tensors):
            out.write(np.ascontiguousarray(tensors[name]).tobytes())


def read(file: Path) -> dict[str, NDArray[Any]]:
    """All tensors of a safetensors file by name; `WeightsCorrupt` if it is truncated or is not one."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(file))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise WeightsCorrupt(file, "content", "a safetensors file", error) from None


def halve(file: Path, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """``tensors`` as float16, exactly; `WeightsCorrupt` if a value of ``file`` would change.

    The published htdemucs checkpoint is half precision; float32 copies of it hold the same values, and
    going back to float16 is what makes the files of all sources equal.
    """
    halves = {}
    for name, array in tensors.items():
        half = array.astype(np.float16)
        if not np.array_equal(half.astype(array.dtype), array):
            raise WeightsCorrupt(file, f"tensor {name!r}", "half-precision values", "values that are not")
        halves[name] = half
    return halves
