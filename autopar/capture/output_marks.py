"""Where a captured graph computes the tensors of the module's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx

from autopar.capture.model_graph import BlockInput, InputKind
from autopar.capture.module_output import ModuleOutput, OutputForm, OutputTensor


def mark_output(
    graph: fx.Graph,
    marks: Sequence[fx.Node],
    form: OutputForm,
    inputs: Mapping[str, BlockInput],
    sizes: frozenset[sympy.Expr],
) -> ModuleOutput:
    """Describes the values that an output consists of; dead code has been removed from ``graph``.

    Args:
        marks: the node of each tensor; those that the graph has lost are no longer in it.
        inputs: what the placeholders stand for, by name.
        sizes: what stands for the number of samples (``batch_sizes``).
    """
    alive = set(graph.nodes)
    loss = next(node for node in reversed(graph.nodes) if node.op == "output").all_input_nodes[0]
    tensors = []
    for node, label in zip(marks, form.labels, strict=True):
        entry = inputs.get(node.name) if node.op == "placeholder" else None
        is_entry = entry is not None and entry.kind is InputKind.BATCH
        tensors.append(
            OutputTensor(
                label=label,
                value=node.name if node in alive and entry is None else "",
                batch_key=entry.source if entry is not None and is_entry else "",
                batch_dim=_batch_dim(node, sizes),
                needs=_needs(node, inputs),
                is_loss=node is loss,
            )
        )
    return ModuleOutput(form, tuple(tensors))


def batch_sizes(graph: fx.Graph, inputs: Mapping[str, BlockInput]) -> frozenset[sympy.Expr]:
    """What stands for the number of samples in the shapes of the graph, if it is left open."""
    return frozenset(
        dim.node.expr
        for node in graph.nodes
        if node.op == "placeholder" and inputs[node.name].kind is InputKind.BATCH
        for dim in node.meta["val"].shape
        if isinstance(dim, torch.SymInt)
    )


def _batch_dim(node: fx.Node, sizes: frozenset[sympy.Expr]) -> int | None:
    value = node.meta["val"]
    shape = value.shape if isinstance(value, torch.Tensor) else ()
    dims = [i for i, size in enumerate(shape) if isinstance(size, torch.SymInt) and size.node.expr in sizes]
    return dims[0] if len(dims) == 1 else None


def _needs(node: fx.Node, inputs: Mapping[str, BlockInput]) -> frozenset[str]:
    found: set[str] = set()
    seen: set[fx.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if isinstance(current.meta.get("val"), torch.SymInt):
            # The number of samples, read off whichever entry comes to hand: a plan knows it.
            continue
        if current.op == "placeholder" and inputs[current.name].kind is InputKind.BATCH:
            found.add(inputs[current.name].source)
        pending += current.all_input_nodes
    return frozenset(found)
