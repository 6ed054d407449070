"""Arguments written into a call as they are, of which a plan wants others: local sizes (reshape, expand,
split, groups), and dense gradients of embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from autopar.capture.operator_facts import argument_value
from autopar.sharding.placement import Placement, Shard, local_shape
from autopar.sharding.rule import Rule

aten = torch.ops.aten

_SIZED_LIKE_RESULT = {
    aten.reshape.default: "shape",
    aten.view.default: "size",
    aten._unsafe_view.default: "size",
    aten.expand.default: "size",
}
_SPLITS = {
    aten.split.Tensor: "split_size",
    aten.split_with_sizes.default: "split_sizes",
    aten.split.sizes: "split_size",
}
_GROUPED = {
    aten.conv1d.default: "groups",
    aten.conv1d.padding: "groups",
    aten.conv2d.default: "groups",
    aten.conv2d.padding: "groups",
    aten.conv3d.default: "groups",
    aten.conv3d.padding: "groups",
    aten.conv_transpose1d.default: "groups",
    aten.conv_transpose2d.input: "groups",
    aten.conv_transpose3d.input: "groups",
    aten.convolution.default: "groups",
    aten.group_norm.default: "num_groups",
}
# Summed over data ranks, a sparse gradient has the rows of all; what sums is made for dense ones.
_WITH_SPARSE_GRADIENT = frozenset(
    {aten.embedding.default, aten.embedding_bag.default, aten.embedding_bag.padding_idx}
)


def dense_gradients(node: fx.Node) -> dict[str, Any]:
    """Arguments of ``node`` (by schema name) that keep its gradients from being sparse; they are equal."""
    if node.target in _WITH_SPARSE_GRADIENT and argument_value(node, "sparse", False):
        return {"sparse": False}
    return {}


def local_literals(node: fx.Node, rule: Rule, degree: int) -> dict[str, Any]:
    """Arguments of ``node`` (by schema name) that change under ``rule``, with their local values."""
    target: Any = node.target
    if not isinstance(rule.output, Shard):
        return {}
    if target in _SIZED_LIKE_RESULT:
        return {_SIZED_LIKE_RESULT[target]: list(_local_result(node, rule.output, degree))}
    if target is aten.unflatten.int:
        dim = argument_value(node, "dim", None) % node.args[0].meta["val"].dim()  # type: ignore[union-attr]
        count = len(argument_value(node, "sizes", None))
        return {"sizes": list(_local_result(node, rule.output, degree)[dim : dim + count])}
    if target in _SPLITS:
        dim = (argument_value(node, "dim", None) or 0) % node.args[0].meta["val"].dim()  # type: ignore[union-attr]
        if rule.output.dim == dim:
            name = _SPLITS[target]
            size = argument_value(node, name, None)
            local = size // degree if isinstance(size, int) else [s // degree for s in size]
            return {name: local}
    if (
        target is aten.narrow.default
        and argument_value(node, "dim", None) % node.meta["val"].dim() == rule.output.dim
    ):
        return {"length": argument_value(node, "length", None) // degree}
    if target in _GROUPED and rule.output == Shard(1) and rule.inputs[0] == Shard(1):
        return {_GROUPED[target]: argument_value(node, _GROUPED[target], None) // degree}
    return {}


def _local_result(node: fx.Node, placement: Placement, degree: int) -> tuple[int, ...]:
    return local_shape(tuple(node.meta["val"].shape), placement, degree)
