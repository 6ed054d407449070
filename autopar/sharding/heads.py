"""How many heads a projection's output features are divided into, read off the reshape that does it."""

from __future__ import annotations

import operator

import torch
from torch import fx

from autopar.sharding.roles import Role, Use, operator_name
from autopar.sharding.rules.pointwise import is_pointwise
from autopar.sharding.rules.views import dim_groups

_CUTTING = frozenset({"split", "split_with_sizes", "chunk"})
_COLUMN_ROLES = frozenset({Role.LINEAR_WEIGHT, Role.PRODUCT_WEIGHT})


def num_heads(use: Use, parts: int) -> int | None:
    """Heads along the output features of the product ``use``, or None where nothing divides the features.

    Args:
        use: the linear or matrix product that reads the weight.
        parts: number of equal parts fused along the output features.
    """
    if use.role not in _COLUMN_ROLES:
        return None
    waiting, seen = [(use.node, parts)], {use.node}
    while waiting:
        node, left = waiting.pop(0)
        for user in node.users:
            if user in seen:
                continue
            seen.add(user)
            heads = _heads_in(user, node, left)
            if heads is not None:
                return heads
            if _keeps_features(user, node):
                waiting.append((user, 1 if operator_name(user) in _CUTTING else left))
    return None


def _heads_in(user: fx.Node, node: fx.Node, parts: int) -> int | None:
    """Heads, if ``user`` divides the last dim of ``node``."""
    if operator_name(user) not in ("reshape", "view", "unflatten") or user.args[0] is not node:
        return None
    before, after = tuple(node.meta["val"].shape), tuple(user.meta["val"].shape)
    for ins, outs in dim_groups(before, after):
        if ins == (len(before) - 1,) and len(outs) > 1:
            sizes: list[int] = [after[d] for d in outs]
            if parts > 1 and sizes[0] == parts:
                sizes = sizes[1:]
            return sizes[0] if len(sizes) > 1 else None
    return None


def _keeps_features(user: fx.Node, node: fx.Node) -> bool:
    """Whether the last dim of ``user`` holds the features of ``node``'s, or equal parts of them."""
    if user.op != "call_function":
        return False
    if user.target is operator.getitem or operator_name(user) in _CUTTING:
        return True
    value = user.meta.get("val")
    if not isinstance(value, torch.Tensor) or not isinstance(node.meta.get("val"), torch.Tensor):
        return False
    if operator_name(user) in ("reshape", "view"):
        return value.dim() > 0 and value.shape[-1] == node.meta["val"].shape[-1]
    return is_pointwise(user.target) and value.shape[-1:] == node.meta["val"].shape[-1:]
