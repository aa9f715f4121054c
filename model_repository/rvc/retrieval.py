"""Retrieval: content features are mixed with similar ones from the voice's training data, which brings timbre closer.

The index is a faiss file (DOI 10.1109/TBDATA.2019.2921572). faiss believes what a file claims, so `Index.load` first
walks through the file and compares every claim with the bytes that are there.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checkpoint import CheckpointError

NEIGHBOURS = 8
MAX_BYTES = 1 << 30  # 350,000 vectors of 768; real indexes hold 10,000 to 100,000
CLOSEST = 1e-12  # squared distance below which a neighbour counts as equal; 0 would give NaN

Vectors = NDArray[np.float32]


class Index:
    """A voice's index.

    Args:
        index: faiss' object, IVF or flat, squared Euclidean distance.
        vectors: all vectors in it, (n, width) float32.
    """

    def __init__(self, index: Any, vectors: Vectors) -> None:
        self._index = index
        self._vectors = vectors
        self._on_device: tuple[Tensor, Tensor] | None = None

    @property
    def width(self) -> int:
        """Channels of a feature."""
        return int(self._vectors.shape[1])

    def __len__(self) -> int:
        return len(self._vectors)

    def memory(self, device: torch.device) -> int:
        """Bytes, with all that exact search on ``device`` will keep."""
        copies = 2 if device.type == "cpu" else 3  # faiss', ours, and the device's
        lists = self._index.nlist * self.width if isinstance(self._index, faiss.IndexIVF) else 0
        # A vector's id, its place in the lists, and its square; centroids.
        return copies * self._vectors.nbytes + (8 + 8 + 4) * len(self) + 4 * lists

    @classmethod
    def load(cls, source: bytes | Path, width: int, limit: int = MAX_BYTES) -> Index:
        """From a faiss file or its bytes; ``width`` is what the voice's features need.

        Raises:
            CheckpointError: it is not a sound index of this width.
        """
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size > limit:
            raise CheckpointError("TOO_LARGE", f"the index has {size:,} bytes; at most {limit:,} are accepted")
        data = source if isinstance(source, bytes) else source.read_bytes()
        _Walk(data).index(width)
        try:
            index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
            if isinstance(index, faiss.IndexIVF):
                index.make_direct_map()
            vectors: Vectors = index.reconstruct_n(0, index.ntotal)
        except Exception as error:  # faiss raises RuntimeError with paths and line numbers in it
            raise CheckpointError("NOT_AN_INDEX", f"not a readable index: {type(error).__name__}") from None
        if not np.isfinite(vectors).all():
            raise CheckpointError("WRONG_VALUES", "the index contains NaN or infinity")
        return cls(index, vectors)

    def blend(self, features: Tensor, rate: float, exact: bool = False) -> Tensor:
        """``rate`` of what the neighbours say and ``1 - rate`` of the features.

        Args:
            features: (..., frames, width).
            rate: 0..1.
            exact: search all vectors, on the device of the features, instead of the index's nearest lists on the CPU.

        Returns:
            As ``features``. A frame for which nothing is found stays as it is.
        """
        flat = features.reshape(-1, self.width).float()
        if exact:
            found = self._blend_exact(flat)
        else:
            queries = np.ascontiguousarray(flat.cpu().numpy())
            scores, ids = self._index.search(queries, min(NEIGHBOURS, len(self)))
            weights = _weights(torch.from_numpy(scores)) * torch.from_numpy(ids >= 0)
            total = weights.sum(1, keepdim=True)
            near = torch.from_numpy(self._vectors[np.maximum(ids, 0)])
            mixed = ((weights / total.clamp_min(1e-30)).float().unsqueeze(-1) * near).sum(1)
            found = torch.where(total > 0, mixed, torch.from_numpy(queries)).to(flat.device)
        return (rate * found + (1 - rate) * flat).reshape(features.shape).to(features.dtype)

    def _blend_exact(self, flat: Tensor) -> Tensor:
        if self._on_device is None or self._on_device[0].device != flat.device:
            vectors = torch.from_numpy(self._vectors).to(flat.device)
            self._on_device = vectors, (vectors * vectors).sum(1)
        vectors, squares = self._on_device
        # The matrix product finds candidates; its distances lose digits to cancellation, so they are taken anew.
        ids = (squares - 2 * flat @ vectors.T).topk(min(NEIGHBOURS, len(vectors)), dim=1, largest=False).indices
        near = vectors[ids]
        weights = _weights(((near - flat.unsqueeze(1)) ** 2).sum(-1))
        return ((weights / weights.sum(1, keepdim=True)).float().unsqueeze(-1) * near).sum(1)


def protect(features: Tensor, before: Tensor, f0: Tensor, rate: float) -> Tensor:
    """Features (B, T, width) with less of retrieval where there is no pitch (breath, consonants).

    Args:
        features, before: with and without retrieval.
        f0: Hz, (B, T).
        rate: what unvoiced frames keep of it; 0.5 and more: everything.
    """
    if rate >= 0.5:
        return features
    kept = torch.where(f0 < 1, rate, 1.0).unsqueeze(-1).to(features.dtype)
    return features * kept + before * (1 - kept)


def _weights(distances: Tensor) -> Tensor:
    """Inverse squares of squared distances; float64, because the clamp's inverse square is 1e24."""
    return distances.double().clamp_min(CLOSEST) ** -2


class _Walk:
    """Walks through a faiss file without believing it: every size is compared with the bytes that are left."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def index(self, width: int) -> None:
        """An index of ``width`` channels: IVF,Flat or flat.

        Raises:
            CheckpointError: it is anything else.
        """
        kind = self._bytes(4)
        if kind == b"IwFl":
            count = self._header(width)
            lists, probes = self._take("<QQ")
            if not 1 <= lists <= len(self._data) or not 1 <= probes <= lists:
                raise self._wrong(f"{lists} lists of which {probes} are searched")
            kind = self._bytes(4)
            if kind not in (b"IxF2", b"IxFI", b"IxFl") or self._flat(width) != lists:
                raise self._wrong("no flat quantizer of its lists")
            self._direct_map()
            self._inverted(lists, width, count)
        elif kind in (b"IxF2", b"IxFl"):
            self._flat(width)
        else:
            raise CheckpointError("NOT_AN_INDEX", "not a faiss index of type IVF,Flat or Flat")
        if self._at != len(self._data):
            raise self._wrong("bytes after its end")

    def _header(self, width: int) -> int:
        channels, count, _, _, trained, metric = self._take("<iqqqBi")
        if channels != width:
            text = f"the index is of {channels} channels, the voice needs {width}"
            raise CheckpointError("WRONG_SHAPES", text)
        if not 1 <= count <= len(self._data) or trained != 1 or metric != 1:
            raise self._wrong(f"{count} vectors, trained {trained}, metric {metric}")
        return int(count)

    def _flat(self, width: int) -> int:
        count = self._header(width)
        (floats,) = self._take("<Q")
        if floats != count * width:
            raise self._wrong(f"{count} vectors in {floats} numbers")
        self._bytes(4 * floats)
        return count

    def _direct_map(self) -> None:
        kind, entries = self._take("<BQ")
        if kind > 1:  # 2 is a hash table, which the files of RVC do not have
            raise self._wrong("a hashed direct map")
        self._bytes(8 * entries)

    def _inverted(self, lists: int, width: int, count: int) -> None:
        kind, said_lists, code_size = self._bytes(4), *self._take("<QQ")
        if kind != b"ilar" or said_lists != lists or code_size != 4 * width:
            raise self._wrong("inverted lists of another kind or size")
        coding, entries = self._bytes(4), self._take("<Q")[0]
        sizes = np.frombuffer(self._bytes(8 * entries), "<u8")
        if coding == b"full" and entries == lists:
            lengths = sizes
        elif coding == b"sprs" and entries % 2 == 0 and (sizes[::2] < lists).all():
            lengths = sizes[1::2]
        else:
            raise self._wrong("unreadable list sizes")
        if (lengths > count).any() or int(lengths.sum()) != count:
            raise self._wrong("lists that do not add up to its vectors")
        for length in lengths.tolist():
            self._bytes(length * code_size)
            ids = np.frombuffer(self._bytes(8 * length), "<i8")
            # faiss finds a vector by its id when all are read back; another id would be a write outside the map.
            if ((ids < 0) | (ids >= count)).any():
                raise self._wrong("an id that is none of its vectors")

    def _take(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))

    def _bytes(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise self._wrong("more content claimed than there is")
        self._at += count
        return self._data[self._at - count : self._at]

    def _wrong(self, text: str) -> CheckpointError:
        return CheckpointError("WRONG_FORMAT", f"the index contradicts itself: {text}")
