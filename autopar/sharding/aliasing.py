"""In-place operators: what shares storage with a tensor that is written to stays replicated together.

Capture has already made ordinary operators of the in-place ones that nobody can tell apart; what is left
writes through views or to buffers, and every such write must meet the same whole tensor.
"""

from __future__ import annotations

import torch
from torch import fx

from autopar.capture.operator_facts import aliased_arguments, argument_value

aten = torch.ops.aten

# Operators that write to arguments although their schema does not say so.
_STATISTICS = {
    aten.batch_norm.default: ("running_mean", "running_var"),
    aten.instance_norm.default: ("running_mean", "running_var"),
}


def is_mutable(target: object) -> bool:
    """Whether the operator's schema says that it writes to an argument."""
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def hidden_writes(node: fx.Node) -> tuple[fx.Node, ...]:
    """Running statistics that ``node`` updates: they must be used as placed, never through a copy."""
    names = _STATISTICS.get(node.target, ())  # type: ignore[call-overload]
    found = (argument_value(node, name, None) for name in names)
    return tuple(value for value in found if isinstance(value, fx.Node))


def pinned_nodes(graph: fx.Graph) -> frozenset[str]:
    """Names of the nodes that share storage with a tensor that an in-place operator writes to."""
    group: dict[fx.Node, list[fx.Node]] = {}
    written: list[fx.Node] = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        sharing = aliased_arguments(node)
        if is_mutable(node.target):
            written.extend(sharing)
        for argument in sharing:
            first, second = group.setdefault(argument, [argument]), group.setdefault(node, [node])
            if first is not second:
                first.extend(second)
                for member in second:
                    group[member] = first
    return frozenset(member.name for node in written for member in group[node])
