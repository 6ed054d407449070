"""Which values of a block require a gradient: conversions of the others need no backward collective."""

from __future__ import annotations

import torch
from torch import fx

from autopar.capture.model_graph import Block, InputKind
from autopar.sharding.rules.operator import tensor_arguments

_WITH_GRADIENT = frozenset({InputKind.PARAMETER, InputKind.ACTIVATION})


def is_floating(node: fx.Node) -> bool:
    """Whether a node stands for a floating tensor, or a tuple with one."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return value.is_floating_point()
    return isinstance(value, (tuple, list)) and any(
        isinstance(item, torch.Tensor) and item.is_floating_point() for item in value
    )


def nodes_with_gradient(block: Block, frozen: frozenset[str] = frozenset()) -> frozenset[str]:
    """Names of the nodes that may require a gradient: floating, from a parameter or an activation.

    Args:
        frozen: canonical names of parameters without gradient.
    """
    kinds = {item.placeholder: item.kind for item in block.inputs if item.source not in frozen}
    found: set[str] = set()
    for node in block.graph.nodes:
        if node.op == "placeholder":
            depends = kinds.get(node.name) in _WITH_GRADIENT
        else:
            depends = not node.meta.get("no_grad") and any(a.name in found for a in tensor_arguments(node))
        if depends and is_floating(node):
            found.add(node.name)
    return frozenset(found)
