"""The fingerprint of a model: what a plan file says it was made for."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from autopar.capture.model_graph import BlockInput, InputKind, ModelGraph
from autopar.capture.segments import Chain

# A cast, or a guard that a model puts in for one dtype only.
_DTYPE_DEPENDENT = {
    "to",
    "_to_copy",
    "type_as",
    "isinf",
    "isfinite",
    "clamp",
    "full_like",
    "where",
    "any",
    "all",
}


def fingerprint(graph: fx.Graph, chain: Chain, inputs: Mapping[str, BlockInput], model: ModelGraph) -> str:
    """Hash of the structure: parameters, buffers, batch, operators and blocks.

    It does not depend on the micro-batch (``graph`` is always the one of the same size), on the compute dtype
    (a plan made for bf16 is verified in float64), nor on the machine (device and grouped-product
    implementations are left out).
    """
    lines = [
        f"parameter {p.name} {p.spec.shape} {p.requires_grad} {p.aliases}" for p in model.parameters.values()
    ]
    lines += [f"buffer {name} {spec.shape}" for name, spec in model.buffers.items()]
    lines += [
        f"batch {name} {spec.shape[:dim] + spec.shape[dim + 1 :]} {spec.dtype.is_floating_point}"
        for name, spec in model.batch.items()
        for dim in [model.batch_dims.get(name, 0)]
    ]
    lines += [f"block {name}" for name in chain.names]
    for node in graph.nodes:
        if node.op != "call_function" or node.name not in chain.block_of or node.target is operator.getitem:
            continue
        name = node.meta["operator_key"].partition(":")[2].partition("#")[0]
        if name in _DTYPE_DEPENDENT:
            continue
        name = "grouped_mm" if "grouped_mm" in name else name
        sources = [
            inputs[n.name].source
            for n in node.all_input_nodes
            if n.op == "placeholder" and inputs[n.name].kind is InputKind.PARAMETER
        ]
        literals = [_literal(value) for value in (*node.args, *node.kwargs.values())]
        lines.append(
            f"{chain.block_of[node.name]} {node.meta['module']} {name} {sources} {literals} {_shape(node)}"
        )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _literal(value: Any) -> str:
    if isinstance(value, bool | int | str):
        return repr(value)
    if isinstance(value, float):
        return (
            f"{value:.6g}" if abs(value) < 1e4 else "extreme"
        )  # masks are filled with the dtype's own minimum
    if isinstance(value, list | tuple):
        return "[" + ",".join(_literal(item) for item in value) + "]"
    return "-"


def _shape(node: fx.Node) -> str:
    value = node.meta["val"]
    values = value if isinstance(value, list | tuple) else (value,)
    return str([tuple(item.shape) for item in values if isinstance(item, torch.Tensor)])
