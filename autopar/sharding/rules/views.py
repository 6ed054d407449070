"""Operators that regroup or reorder dims without arithmetic: reshape, transpose, squeeze, expand."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch

from autopar.sharding.placement import PARTIAL, REPLICATE, Shard
from autopar.sharding.rule import Rule
from autopar.sharding.rules.operator import Operator, Shape, shape_of
from autopar.sharding.rules.pointwise import aligned

aten = torch.ops.aten


def dim_groups(before: Shape, after: Shape) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Smallest runs of dims of a reshape with equal products; dims of size 1 are left out."""
    groups = []
    i = j = 0
    while i < len(before) or j < len(after):
        first_i, first_j = i, j
        left = before[i] if i < len(before) else 1
        right = after[j] if j < len(after) else 1
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        ins = tuple(d for d in range(first_i, min(i, len(before))) if before[d] > 1)
        outs = tuple(d for d in range(first_j, min(j, len(after))) if after[d] > 1)
        if ins and outs:
            groups.append((ins, outs))
    return groups


def reshape(op: Operator) -> Iterator[Rule]:
    """``reshape``, ``view``, ``flatten``, ``unflatten``.

    A shard of dim p of a run of dims is a shard of the merged run inside ``prod(sizes before p) x blocks``
    equal parts; it lives on in the dim of the result whose leading sizes divide that number.
    """
    before, after = op.shape("self"), op.output_shape
    if 0 in before:
        return
    for ins, outs in dim_groups(before, after):
        for position, dim in enumerate(ins):
            for blocks in op.fused:
                if not op.divides(before[dim], blocks):
                    continue
                merged = prod(before[d] for d in ins[:position]) * blocks
                target = _dim_of(op, after, outs, merged)
                if target is not None:
                    yield Rule((Shard(dim, blocks),), target)
    yield from linear_map(op)


def _dim_of(op: Operator, shape: Shape, dims: tuple[int, ...], merged_blocks: int) -> Shard | None:
    for position in reversed(range(len(dims))):
        leading = prod(shape[d] for d in dims[:position])
        if merged_blocks % leading == 0 and op.divides(shape[dims[position]], merged_blocks // leading):
            return Shard(dims[position], merged_blocks // leading)
    return None


def linear_map(op: Operator) -> Iterator[Rule]:
    """Operators that only move elements keep partial sums partial."""
    if op.tensors[0].meta["val"].is_floating_point():
        yield Rule((PARTIAL,) * len(op.tensors), PARTIAL)


def permutation(op: Operator) -> tuple[int, ...]:
    """For each dim of the result, the dim of the argument that it is."""
    rank = len(op.shape("self"))
    if op.node.target is aten.permute.default:
        return tuple(d % rank for d in op.argument("dims"))
    order = list(range(rank))
    if rank < 2:
        return tuple(order)
    if op.node.target in (aten.t.default, aten.mT.default, aten.numpy_T.default):
        a, b = rank - 2, rank - 1
        if op.node.target is aten.numpy_T.default:
            return tuple(reversed(order))
    else:
        names = ("dim0", "dim1") if "dim0" in op.arguments else ("axis0", "axis1")
        a, b = (op.argument(name) % rank for name in names)
    order[a], order[b] = order[b], order[a]
    return tuple(order)


def permute(op: Operator) -> Iterator[Rule]:
    """``transpose``, ``permute``, ``t`` and their other names."""
    order = permutation(op)
    for shard in op.shards(op.shape("self")):
        yield Rule((shard,), Shard(order.index(shard.dim), shard.blocks))
    yield from linear_map(op)


def movedim(op: Operator) -> Iterator[Rule]:
    """``movedim`` of one dim or several."""
    rank = len(op.shape("self"))
    source, destination = op.argument("source"), op.argument("destination")
    sources = [source] if isinstance(source, int) else list(source)
    targets = [destination] if isinstance(destination, int) else list(destination)
    moved = {t % rank: s % rank for s, t in zip(sources, targets, strict=True)}
    others = iter(d for d in range(rank) if d not in moved.values())
    order = [moved[d] if d in moved else next(others) for d in range(rank)]
    for shard in op.shards(op.shape("self")):
        yield Rule((shard,), Shard(order.index(shard.dim), shard.blocks))
    yield from linear_map(op)


def unsqueeze(op: Operator) -> Iterator[Rule]:
    """A new dim of size 1."""
    shape = op.shape("self")
    new = op.argument("dim") % (len(shape) + 1)
    for shard in op.shards(shape):
        yield Rule((shard,), Shard(shard.dim + (shard.dim >= new), shard.blocks))
    yield from linear_map(op)


def squeeze(op: Operator) -> Iterator[Rule]:
    """Drops dims of size 1; a sharded dim is never one of them, its local size may be."""
    shape = op.shape("self")
    rank = max(len(shape), 1)
    dim = op.argument("dim")
    named = range(rank) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    dropped = {d % rank for d in named if shape and shape[d % rank] == 1}
    for shard in op.shards(shape):
        # Without named dims, or with this one named, a local size of 1 would be squeezed away too.
        if shape[shard.dim] == op.degree and any(d % rank == shard.dim for d in named):
            continue
        yield Rule((shard,), Shard(shard.dim - sum(d < shard.dim for d in dropped), shard.blocks))
    yield from linear_map(op)


def expand(op: Operator) -> Iterator[Rule]:
    """Repeats dims of size 1; each rank repeats only as far as its own piece needs."""
    before, after = op.shape("self"), op.output_shape
    offset = len(after) - len(before)
    for shard in op.shards(after):
        dim = shard.dim - offset
        if dim >= 0 and before[dim] == after[shard.dim]:
            yield Rule((Shard(dim, shard.blocks),), shard)
        elif shard.blocks == 1:
            yield Rule((REPLICATE,), shard)
    if len(op.tensors) == 1:
        yield from linear_map(op)


def expand_as(op: Operator) -> Iterator[Rule]:
    """As ``expand``, the size read off another tensor."""
    before, after = op.shape("self"), op.output_shape
    offset = len(after) - len(before)
    for shard in op.shards(after):
        dim = shard.dim - offset
        same = dim >= 0 and before[dim] == after[shard.dim]
        yield Rule((Shard(dim, shard.blocks) if same else REPLICATE, shard), shard)


def broadcast_tensors(op: Operator) -> Iterator[Rule]:
    """All arguments expanded to their common shape."""
    common = op.output_shape
    for shard in op.shards(common):
        yield Rule(tuple(aligned(shape_of(node), common, shard) for node in op.tensors), shard)
    if all(node.meta["val"].is_floating_point() for node in op.tensors):
        yield Rule((PARTIAL,) * len(op.tensors), PARTIAL)
