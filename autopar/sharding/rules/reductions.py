"""Reductions: dims that are kept; a sum over a sharded dim leaves partial sums."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from autopar.sharding.placement import PARTIAL, Shard
from autopar.sharding.rule import Rule
from autopar.sharding.rules.operator import Operator
from autopar.sharding.rules.views import linear_map

aten = torch.ops.aten

SUMS = frozenset({aten.sum.default, aten.sum.dim_IntList})
MEANS = frozenset({aten.mean.default, aten.mean.dim})


def reduction(op: Operator) -> Iterator[Rule]:
    """``sum``, ``mean``, ``amax``, ``var``, ``argmax``, ``max.dim`` and their like."""
    shape = op.shape("self")
    rank = len(shape)
    dims = op.argument("dim")
    if rank == 0:
        return
    named = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    reduced = {d % rank for d in named}
    keep = bool(op.argument("keepdim", False))
    target = op.node.target
    for shard in op.shards(shape):
        if shard.dim not in reduced:
            lost = 0 if keep else sum(d < shard.dim for d in reduced)
            yield Rule((shard,), Shard(shard.dim - lost, shard.blocks))
        elif _is_floating(op) and target in SUMS:
            yield Rule((shard,), PARTIAL)
        elif _is_floating(op) and target in MEANS:
            yield Rule((shard,), PARTIAL, "mean_of_shards")
    if _is_floating(op) and target in SUMS | MEANS:
        yield from linear_map(op)


def _is_floating(op: Operator) -> bool:
    value = op.value
    return isinstance(value, torch.Tensor) and value.is_floating_point()
