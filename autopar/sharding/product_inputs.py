"""Values that only products with weights read: gathered from a shard, they need not be kept whole."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten

# Position of what a product multiplies with its weight, and of the weight.
OPERANDS: dict[Any, tuple[int, int]] = {
    _aten.linear.default: (0, 1),
    _aten.matmul.default: (0, 1),
    _aten.mm.default: (0, 1),
    _aten.addmm.default: (1, 2),
}


def product_inputs(graph: fx.Graph, gradients: Collection[str], pinned: Collection[str]) -> frozenset[str]:
    """Names of the values with a gradient all of whose readers are products with matrices.

    Args:
        gradients: names of the nodes that may require a gradient.
        pinned: names of the nodes that share storage with a tensor that is written to in place.
    """
    return frozenset(
        node.name
        for node in graph.nodes
        if node.name in gradients
        and node.name not in pinned
        and node.users
        and all(user.name not in pinned and _multiplies(user, node) for user in node.users)
    )


def _multiplies(user: fx.Node, value: fx.Node) -> bool:
    if user.target not in OPERANDS or user.kwargs:
        return False
    of_value, of_weight = OPERANDS[user.target]
    weight = user.args[of_weight]
    return (
        isinstance(weight, fx.Node)
        and weight.meta["val"].dim() == 2
        and value.meta["val"].dim() >= 2
        and [argument is value for argument in user.args].count(True) == 1
        and user.args[of_value] is value
    )
