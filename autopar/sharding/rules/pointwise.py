"""Elementwise operators: any dim, broadcast; the linear ones pass sums that are still partial."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from autopar.sharding.placement import PARTIAL, REPLICATE, Placement, Shard
from autopar.sharding.rule import Rule
from autopar.sharding.rules.operator import Operator, Shape, shape_of

aten = torch.ops.aten

# Elementwise in effect, but not tagged so by torch.
UNTAGGED = frozenset(
    {
        aten.dropout.default,
        aten.alpha_dropout.default,
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.to.device,
        aten.to.other,
        aten._to_copy.default,
        aten.contiguous.default,
        aten.clone.default,
        aten.alias.default,
        aten.detach.default,
        aten.lift_fresh_copy.default,
        aten.type_as.default,
        aten.where.self,
        aten.where.ScalarOther,
        aten.where.ScalarSelf,
        aten.where.Scalar,
        aten.masked_fill.Scalar,
        aten.masked_fill.Tensor,
        aten.min.other,
        aten.max.other,
        aten.__and__.Tensor,
        aten.__or__.Tensor,
        aten.__xor__.Tensor,
        aten.prelu.default,
        aten.square.default,
        aten.selu.default,
        aten.relu6.default,
    }
)
RANDOM = frozenset({aten.dropout.default, aten.alpha_dropout.default})
LIKE = frozenset(
    {
        aten.zeros_like.default,
        aten.ones_like.default,
        aten.full_like.default,
        aten.empty_like.default,
    }
)
_LINEAR = frozenset(
    {
        aten.neg.default,
        aten.clone.default,
        aten.contiguous.default,
        aten.alias.default,
        aten.detach.default,
        aten.lift_fresh_copy.default,
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.to.device,
        aten._to_copy.default,
        aten.mul.Scalar,
        aten.div.Scalar,
        aten.dropout.default,
    }
)


def is_pointwise(target: object) -> bool:
    """Whether ``target`` computes each element from the elements at the same (broadcast) place."""
    if target in UNTAGGED:
        return True
    return (
        isinstance(target, torch._ops.OpOverload)
        and torch.Tag.pointwise in target.tags
        and not target._schema.is_mutable
        and target is not aten.prelu.default
    )


def is_random(op: Operator) -> bool:
    """Whether the call draws random numbers."""
    target = op.node.target
    if target in RANDOM:
        return bool(op.argument("p", 0.0) > 0 and op.argument("train", True))
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def aligned(shape: Shape, output: Shape, shard: Shard) -> Placement:
    """Placement of an operand of ``shape``, broadcast to ``output``, for a result placed ``shard``."""
    dim = shard.dim - (len(output) - len(shape))
    return Shard(dim, shard.blocks) if dim >= 0 and shape[dim] == output[shard.dim] else REPLICATE


def pointwise(op: Operator) -> Iterator[Rule]:
    """Shards of any dim of the result; partial sums through linear operators."""
    output = op.output_shape
    if op.node.target is aten.prelu.default:
        yield from _prelu(op)
        return
    local = "own_stream" if is_random(op) else None
    shapes = [shape_of(node) for node in op.tensors]
    for shard in op.shards(output):
        yield Rule(tuple(aligned(shape, output, shard) for shape in shapes), shard, local)
    yield from _partial(op)


def like(op: Operator) -> Iterator[Rule]:
    """``zeros_like`` and its kin read only the shape."""
    shape = shape_of(op.tensors[0])
    for shard in op.shards(shape):
        yield Rule((shard,), shard)
    if op.value.is_floating_point():
        yield Rule((PARTIAL,), REPLICATE)


def _prelu(op: Operator) -> Iterator[Rule]:
    shape, num_weights = op.shape("self"), op.shape("weight")[0]
    for shard in op.shards(shape):
        if shard.dim == 1 and num_weights > 1:
            yield op.rule(shard, {"self": shard, "weight": Shard(0, shard.blocks)})
        else:
            yield op.rule(shard, {"self": shard})


def _partial(op: Operator) -> Iterator[Rule]:
    """Rules under which summands stay summands; dropout does: all ranks share its random stream."""
    target = op.node.target
    count = len(op.tensors)
    floating = [node.meta["val"].is_floating_point() for node in op.tensors]
    if not op.value.is_floating_point() or not any(floating):
        return
    if count == 1:
        by_scalar = target in (aten.mul.Tensor, aten.div.Tensor) and op.tensors[0] is op.argument("self")
        if target in _LINEAR or by_scalar:
            yield Rule((PARTIAL,), PARTIAL)
    elif target in (aten.add.Tensor, aten.sub.Tensor) and all(floating):
        yield Rule((PARTIAL, PARTIAL), PARTIAL)
    elif target is aten.mul.Tensor:
        if floating[0]:
            yield Rule((PARTIAL, REPLICATE), PARTIAL)
        if floating[1]:
            yield Rule((REPLICATE, PARTIAL), PARTIAL)
    elif target is aten.div.Tensor and floating[0]:
        yield Rule((PARTIAL, REPLICATE), PARTIAL)
    elif target is aten.where.self and all(floating[1:]):
        yield Rule((REPLICATE, PARTIAL, PARTIAL), PARTIAL)
    elif target is aten.masked_fill.Scalar and op.argument("value") == 0:
        yield Rule((PARTIAL, REPLICATE), PARTIAL)
