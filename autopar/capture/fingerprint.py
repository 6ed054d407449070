"""The fingerprint of a model: what a plan file says it was made for."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from autopar.capture.export import ExportedModel
from autopar.capture.model_graph import InputKind
from autopar.capture.operator_facts import aliased_arguments
from autopar.capture.segments import Chain

_CASTS = {"to", "_to_copy", "type_as"}
# Casts, and guards that a model puts in for one dtype only.
_DTYPE_DEPENDENT = _CASTS | {
    "isinf",
    "isfinite",
    "clamp",
    "full_like",
    "where",
    "any",
    "all",
}


def fingerprint(
    exported: ExportedModel, graph: fx.Graph, chain: Chain, batch_dims: Mapping[str, int | None]
) -> str:
    """Hash of the structure: parameters, buffers, batch, operators and blocks.

    It does not depend on the micro-batch (``graph`` is always the one of the same size), on the compute dtype
    (a plan made for bf16 is verified in float64), nor on the machine.
    """
    lines = [
        f"parameter {spec.name} {spec.spec.shape} {spec.requires_grad} {spec.aliases}"
        for spec in exported.parameters.values()
    ]
    lines += [f"buffer {name} {spec.shape}" for name, spec in exported.buffers.items()]
    lines += [f"block {name}" for name in chain.names]
    named, views = _parameters(exported, graph)
    for node in graph.nodes:
        if node.op == "placeholder" and exported.inputs[node.name].kind is InputKind.BATCH:
            key = exported.inputs[node.name].source
            lines.append(f"batch {key} {tuple(node.meta['val'].shape)} {batch_dims.get(key, 0)}")
        elif (
            node.op == "call_function"
            and node.name in chain.block_of
            and node.target is not operator.getitem
            and node not in views
        ):
            lines += _operator(named, node, chain.block_of[node.name], len(chain.names) - 1)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _parameters(exported: ExportedModel, graph: fx.Graph) -> tuple[dict[fx.Node, str], set[fx.Node]]:
    """Nodes that are a parameter, cast or not, with its name; and views of these, which a block has only
    where it casts."""
    named: dict[fx.Node, str] = {}
    views: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" and exported.inputs[node.name].kind is InputKind.PARAMETER:
            named[node] = exported.inputs[node.name].source
        elif node.op == "call_function" and node.all_input_nodes:
            source = node.all_input_nodes[0]
            if _name(node) in _CASTS and source in named:
                named[node] = named[source]
            elif (_name(node) in _CASTS and source in views) or all(
                other in aliased_arguments(node) and (other in named or other in views)
                for other in node.all_input_nodes
            ):
                views.add(node)
    return named, views


def _name(node: fx.Node) -> str:
    return str(node.meta["operator_key"]).partition(":")[2].partition("#")[0]


def _operator(named: Mapping[fx.Node, str], node: fx.Node, block: int, last: int) -> list[str]:
    name = _name(node)
    scalar = isinstance(node.meta["val"], torch.Tensor) and node.meta["val"].dim() == 0
    if name in _DTYPE_DEPENDENT or (scalar and block < last):  # such a guard computes its bound as a scalar
        return []
    name = "grouped_mm" if "grouped_mm" in name else name  # one of several implementations, by dtype
    parameters = [named[source] for source in node.all_input_nodes if source in named]
    literals = [_literal(value) for value in (*node.args, *node.kwargs.values())]
    return [f"{block} {node.meta['module']} {name} {parameters} {literals} {_shape(node)}"]


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
    # Of several results, those that are read: kernels leave others empty, depending on the dtype.
    read = {user.args[1] for user in node.users if user.target is operator.getitem}
    several = isinstance(value, list | tuple)
    values = [v for i, v in enumerate(value) if i in read] if several else [value]
    return str([tuple(item.shape) for item in values if isinstance(item, torch.Tensor)])
