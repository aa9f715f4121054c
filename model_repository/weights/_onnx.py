"""The htdemucs ``state_dict`` out of an ONNX export of the network.

An export keeps 322 of the 533 tensors under their names. Constant folding has renamed the others
(``onnx::Mul_5074``) and reshaped some; the *node* that uses one still carries the path of its PyTorch module
(``/encoder.0/dconv/layers.0/layers.0.1/Mul``), which says what the constant was.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._errors import SourceUnavailable, WeightsCorrupt

EMBEDDING_SCALE = np.float32(10.0)  # HTDemucs(emb_scale=10): the graph holds the embedding times this


def state_dict(file: Path) -> dict[str, NDArray[Any]]:
    """Tensors by their PyTorch names, float32.

    Raises:
        WeightsCorrupt: not an ONNX file, or a constant of it fits no rule.
        SourceUnavailable: the ``onnx`` package is not installed.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise SourceUnavailable("converting weights needs the 'onnx' package: pip install onnx") from None
    try:
        graph = onnx.load(str(file)).graph
    except Exception as error:  # protobuf's DecodeError has no public home
        raise WeightsCorrupt(file, "content", "an ONNX model", error) from None

    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    state = {name: array for name, array in constants.items() if not name.startswith("onnx::")}
    # Cross attention uses its packed projection in two nodes: queries, then keys and values.
    packed: dict[str, list[NDArray[Any]]] = {}
    for node in graph.node:
        for name in node.input:
            if name.startswith("onnx::") and name in constants:
                _place(file, node, constants[name], state, packed)
    for key, parts in packed.items():
        state[key] = np.concatenate(sorted(parts, key=len))  # 512 rows of queries, 1024 of keys and values
    return state


def _place(
    file: Path,
    node: Any,
    array: NDArray[Any],
    state: dict[str, NDArray[Any]],
    packed: dict[str, list[NDArray[Any]]],
) -> None:
    """Put the constant that ``node`` uses where it belongs in ``state`` or ``packed``."""
    scope = _module(node.name)
    match node.op_type:
        case "Expand" if scope == "":
            state["freq_emb.embedding.weight"] = (array[0, :, :, 0].T / EMBEDDING_SCALE).copy()
        case "MatMul" if scope.endswith(".cross_attn"):
            packed.setdefault(f"{scope}.in_proj_weight", []).append(array.T)
        case "MatMul" if scope.endswith(".self_attn"):
            state[f"{scope}.in_proj_weight"] = array.T.copy()
        case "MatMul":
            state[f"{scope}.weight"] = array.T.copy()
        case "Add" if scope.endswith(".cross_attn"):
            packed.setdefault(f"{scope}.in_proj_bias", []).append(array)
        case "Add":
            state[f"{scope}.bias"] = array.reshape(-1)
        case "Mul" if scope.endswith(".6"):  # the seventh layer of a DConv branch is its LayerScale
            state[f"{scope}.scale"] = array.reshape(-1)
        case "Mul":
            state[f"{scope}.weight"] = array.reshape(-1)
        case _:
            raise WeightsCorrupt(file, f"use of a constant in {node.name}", "a known operator", node.op_type)


def _module(node_name: str) -> str:
    """``/encoder.0/dconv/layers.0/layers.0.1/Mul`` is the module ``encoder.0.dconv.layers.0.1``."""
    parts = node_name.strip("/").split("/")[:-1]
    # A module list appears twice, as itself and as the prefix of the member: layers.0/layers.0.1.
    pairs = itertools.zip_longest(parts, parts[1:], fillvalue="")
    kept = [part for part, after in pairs if not after.startswith(part + ".")]
    return ".".join(kept)
