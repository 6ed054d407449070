"""Losses: over tokens with a global count, over the vocabulary with three small reductions, elementwise."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from autopar.sharding.placement import PARTIAL, REPLICATE, Placement, Shard
from autopar.sharding.rule import Rule
from autopar.sharding.rules.operator import Operator, broadcast, shape_of
from autopar.sharding.rules.pointwise import aligned

aten = torch.ops.aten

_NONE, _MEAN, _SUM = 0, 1, 2  # torch's numbers for ``reduction``


def cross_entropy(op: Operator) -> Iterator[Rule]:
    """``self (N, classes, ...)``, ``target (N, ...)`` of indices, or probabilities shaped like ``self``."""
    shape, target = op.shape("self"), op.shape("target")
    if len(shape) < 2:
        return
    probabilities = len(target) == len(shape)
    yield from _over_tokens(op, shape, probabilities, "cross_entropy_tokens")
    plain = not op.has("weight") and not probabilities and not op.argument("label_smoothing", 0.0)
    if plain and op.divides(shape[1]):
        yield op.rule(REPLICATE, {"self": Shard(1)}, local="cross_entropy_vocab")


def nll_loss(op: Operator) -> Iterator[Rule]:
    """As ``cross_entropy`` over log-probabilities; tokens only."""
    shape = op.shape("self")
    if len(shape) >= 2:
        yield from _over_tokens(op, shape, False, "nll_tokens")


def _over_tokens(op: Operator, shape: tuple[int, ...], probabilities: bool, local: str) -> Iterator[Rule]:
    reduction = op.argument("reduction", _MEAN)
    for shard in op.shards(shape):
        if shard.dim == 1:
            continue
        index_dim = Shard(shard.dim - (shard.dim > 1), shard.blocks)
        wanted: dict[str, Placement] = {"self": shard, "target": shard if probabilities else index_dim}
        if reduction == _NONE:
            yield op.rule(index_dim, wanted)
        elif reduction == _SUM:
            yield op.rule(PARTIAL, wanted)
        else:
            yield op.rule(PARTIAL, wanted, local=local)


def elementwise_loss(op: Operator) -> Iterator[Rule]:
    """``mse_loss`` and its kin: a mean (or sum) of a function of each element."""
    reduction = op.argument("reduction", _MEAN)
    shapes = [shape_of(node) for node in op.tensors]
    full = broadcast(shapes)
    if shapes[0] != full or shapes[1] != full:
        return
    for shard in op.shards(full):
        inputs = tuple(aligned(shape, full, shard) for shape in shapes)
        if reduction == _NONE:
            yield Rule(inputs, shard)
        else:
            yield Rule(inputs, PARTIAL, "mean_of_shards" if reduction == _MEAN else None)
