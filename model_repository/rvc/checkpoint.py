"""Checkpoint files, read so that nothing in them is executed and nothing they claim is believed."""

from __future__ import annotations

import io
import os
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Source = bytes | Path
MAX_BYTES = 1 << 30  # real voices are 55 MB, hubert_base.pt 190 MB, rmvpe.pt 180 MB
# The pickled number with which files of PyTorch before 1.6 begin; four more pickles and the bare storages follow.
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_OWN_MODULES = {"torch", "collections", "builtins", "__builtin__", "_codecs", "numpy"}  # PyTorch decides about theirs


class CheckpointError(ValueError):
    """A file that cannot be used.

    Attributes:
        reason: UPPER_SNAKE word for programs: ``NOT_A_CHECKPOINT``, ``TOO_LARGE``, ``UNSAFE``, ``WRONG_FORMAT``,
            ``WRONG_KEYS``, ``WRONG_SHAPES``, ``WRONG_VALUES``, ``TRAINING_CHECKPOINT``, ``DISCRIMINATOR``.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def read(source: Source, *, foreign: bool = False, limit: int = MAX_BYTES) -> Any:
    """The object in a file of `torch.save`, on the CPU.

    Args:
        source: the file, or its bytes.
        foreign: let objects of unknown classes pass, as empty shells (fairseq stores its settings in such). Without it
            they are refused.
        limit: bytes the file may have, packed and unpacked.

    Raises:
        CheckpointError: it is no such file, is too large, or holds code.
    """
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if size > limit:
        raise CheckpointError("TOO_LARGE", f"the file has {size:,} bytes; at most {limit:,} are accepted")
    legacy = _begins(source, _LEGACY)
    if not legacy:
        _check_archive(source, limit)
    shells: list[Any] = []
    try:
        if foreign:
            names = _legacy_globals(source) if legacy else _archive_globals(source)
            # An inert class under each unknown name: nothing is imported. PyTorch refuses some (of os, sys) even so.
            shells = [(type("Shell", (), {"__init__": lambda self, *_args, **_kwargs: None}), name) for name in names]
        with torch.serialization.safe_globals(shells):
            return torch.load(_open(source), map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile pickle can raise anything
        text = str(error)
        if any(word in text for word in ("weights_only", "Unsupported", "unsupported", "WeightsUnpickler")):
            raise CheckpointError("UNSAFE", "the file holds more than tensors and plain values; refused") from None
        raise CheckpointError("NOT_A_CHECKPOINT", f"not a readable checkpoint: {type(error).__name__}") from None


def _open(source: Source) -> Any:
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


def _begins(source: Source, mark: bytes) -> bool:
    if isinstance(source, bytes):
        return source.startswith(mark)
    with source.open("rb") as stream:
        return stream.read(len(mark)) == mark


def _archive_globals(source: Source) -> list[str]:
    """Names of classes and functions that a file uses and PyTorch does not know."""
    return list(torch.serialization.get_unsafe_globals_in_checkpoint(_open(source)))


def _legacy_globals(source: Source) -> set[str]:
    """As `_archive_globals`, of a file in the old layout; read, not executed."""
    names = set()
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        for _ in range(4):  # the number, the version of the layout, the system, and the object
            for opcode, argument, _position in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    names.add(str(argument).replace(" ", "."))
    return {name for name in names if name.partition(".")[0] not in _OWN_MODULES}


def _check_archive(source: Source, limit: int) -> None:
    """Today's checkpoint is a zip archive of uncompressed members, so it cannot be larger inside than outside."""
    try:
        with zipfile.ZipFile(_open(source)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        text = "not a checkpoint: this is no file of torch.save"
        raise CheckpointError("NOT_A_CHECKPOINT", text) from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError("UNSAFE", "the archive is compressed; torch.save never does that")
    if sum(member.file_size for member in members) > limit:
        raise CheckpointError("TOO_LARGE", "the archive claims more content than is accepted")


def save(file: Any, out: Path) -> None:
    """`torch.save` for `read`: appears under its name whole or not at all; the same object gives the same bytes."""
    temporary = out.with_name(f".{out.name}-{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            torch.save(file, stream)  # into a stream: the archive would carry the name of a file
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def voice_weights(file: Any) -> Mapping[Any, Any]:
    """The ``weight`` entry of a voice's file, unchecked.

    Raises:
        CheckpointError: it is another file; training's files are called by their names.
    """
    entries = file if isinstance(file, Mapping) else {}
    weights = entries.get("weight")
    if isinstance(weights, Mapping):
        return weights
    model = entries.get("model", entries)
    names = [str(name) for name in model] if isinstance(model, Mapping) else []
    if any(name.startswith("discriminators.") for name in names):
        text = "this is a training's discriminator (D_….pth): no voice; use the small file made of the generator"
        raise CheckpointError("DISCRIMINATOR", text)
    if any(name.startswith(("enc_p.", "dec.")) for name in names) or {"model", "iteration"} <= entries.keys():
        text = (
            "this is a training's checkpoint (G_….pth), which does not say what kind of voice it is; "
            "use the small file made of it (in RVC: ckpt processing, model extraction)"
        )
        raise CheckpointError("TRAINING_CHECKPOINT", text)
    raise CheckpointError("WRONG_FORMAT", "not a voice: it has no `weight`")


def fold_weight_norm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace each pair ``X.weight_g``, ``X.weight_v`` by ``X.weight = v * g / ||v||`` in float32.

    The norm is over all dimensions in which g has one entry. Pairs in PyTorch's newer naming
    (``X.parametrizations.weight.original0``, ``original1``) are folded too; everything else is passed on.
    """
    folded = {}
    for name, tensor in weights.items():
        for g_suffix, v_suffix in (
            (".weight_g", ".weight_v"),
            (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
        ):
            stem = name.removesuffix(g_suffix)
            if name.endswith(v_suffix) and name.removesuffix(v_suffix) + g_suffix in weights:
                break  # dealt with at its g
            if stem != name and stem + v_suffix in weights:
                g, v = tensor.float(), weights[stem + v_suffix].float()
                if g.dim() != v.dim() or any(a not in (1, b) for a, b in zip(g.shape, v.shape, strict=True)):
                    raise CheckpointError("WRONG_SHAPES", f"{name} {list(g.shape)} does not fit {list(v.shape)}")
                over = [d for d in range(v.dim()) if g.shape[d] == 1]
                folded[stem + ".weight"] = v * (g / torch.linalg.vector_norm(v, dim=over, keepdim=True))
                break
        else:
            folded[name] = tensor
    return folded


def check_tensors(weights: Mapping[Any, Any], limit: int = MAX_BYTES) -> None:
    """All values are float tensors that own their memory, finite and together within ``limit`` bytes of float32.

    Raises:
        CheckpointError: one is not; the text names it.
    """
    total = 0
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError("WRONG_FORMAT", f"entry {name!r:.60} is not a named tensor")
        if tensor.layout != torch.strided or not (tensor.is_floating_point() or tensor.numel() == 1):
            raise CheckpointError("WRONG_FORMAT", f"{name} is {tensor.dtype}, {tensor.layout}; expected dense floats")
        # A few stored bytes can pose as a huge tensor by a stride of 0: the claim must be backed.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError("WRONG_SHAPES", f"{name} claims {list(tensor.shape)}, more than the file holds")
        total += tensor.numel() * 4
        if total > limit:
            raise CheckpointError("TOO_LARGE", f"the tensors need more than {limit:,} bytes")
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError("WRONG_VALUES", f"{name} contains NaN or infinity")


class _Unfilled(TorchFunctionMode):
    """Leaves weights as they are where a module would fill them with random numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules that are made in this context take no memory, and are ready for `fill`.

    PyTorch would fill even weights that take no memory, and import its compiler for that: a second and more.
    """
    with torch.device("meta"), _Unfilled():
        yield


def fill(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give ``module``, made `without_weights`, its weights: float32, all of them and no others.

    Raises:
        CheckpointError: names or shapes differ.
    """
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    missing, unknown = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or unknown:
        parts = [
            f"{len(names)} {what} ({names[0]:.60}, …)"
            for names, what in ((missing, "missing"), (unknown, "unknown"))
            if names
        ]
        raise CheckpointError("WRONG_KEYS", f"these are not the tensors of this model: {', '.join(parts)}")
    for name, shape in wanted.items():
        if weights[name].shape != shape:
            text = f"{name} has shape {list(weights[name].shape)}, the model needs {list(shape)}"
            raise CheckpointError("WRONG_SHAPES", text)
    own = {name: t.float() if t.is_floating_point() else t for name, t in weights.items()}
    module.load_state_dict({name: t.clone().contiguous() for name, t in own.items()}, strict=True, assign=True)
    module.eval().requires_grad_(False)
