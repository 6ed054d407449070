"""Operators that cut a tensor into pieces or join pieces: slice, split, cat, pad, repeat."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from autopar.sharding.placement import PARTIAL, Shard
from autopar.sharding.rule import Rule
from autopar.sharding.rules.operator import Operator
from autopar.sharding.rules.views import linear_map

aten = torch.ops.aten


def is_whole_slice(op: Operator) -> bool:
    """Whether a ``slice`` keeps all of its argument."""
    return op.shape("self") == op.output_shape and op.argument("step", 1) == 1


def slice_(op: Operator) -> Iterator[Rule]:
    """Any dim but the one sliced, and that one where all of it is kept."""
    shape = op.shape("self")
    dim = op.argument("dim", 0) % len(shape)
    whole = is_whole_slice(op)
    for shard in op.shards(shape):
        if shard.dim != dim or whole:
            yield Rule((shard,), shard)
    yield from linear_map(op)


def select(op: Operator) -> Iterator[Rule]:
    """One index of a dim that is not sharded."""
    shape = op.shape("self")
    dim = op.argument("dim") % len(shape)
    for shard in op.shards(shape):
        if shard.dim != dim:
            yield Rule((shard,), Shard(shard.dim - (shard.dim > dim), shard.blocks))
    yield from linear_map(op)


def split(op: Operator) -> Iterator[Rule]:
    """``split`` and ``chunk``: other dims, or equal parts of a dim that is sharded inside each part."""
    shape = op.shape("self")
    dim = op.argument("dim", 0) % len(shape)
    sizes = [part.shape[dim] for part in op.value]
    for shard in op.shards(shape):
        if shard.dim != dim:
            yield Rule((shard,), shard)
    if len(set(sizes)) == 1 and op.divides(sizes[0]):
        yield Rule((Shard(dim, len(sizes)),), Shard(dim))
    yield from linear_map(op)


def unbind(op: Operator) -> Iterator[Rule]:
    """Every index of a dim that is not sharded."""
    yield from select(op)


def cat(op: Operator) -> Iterator[Rule]:
    """Other dims; along the dim itself, equal pieces give a shard inside each of them."""
    shapes = [tuple(node.meta["val"].shape) for node in op.tensors]
    rank = len(op.output_shape)
    if any(len(shape) != rank for shape in shapes):
        return  # empty one-dimensional tensors, which cat skips
    dim = op.argument("dim", 0) % rank
    count = len(shapes)
    for shard in op.shards(op.output_shape):
        if shard.dim != dim:
            yield Rule((shard,) * count, shard)
    sizes = {shape[dim] for shape in shapes}
    if len(sizes) == 1 and op.divides(shapes[0][dim]) and count > 1:
        yield Rule((Shard(dim),) * count, Shard(dim, count))
    if all(node.meta["val"].is_floating_point() for node in op.tensors):
        yield Rule((PARTIAL,) * count, PARTIAL)


def stack(op: Operator) -> Iterator[Rule]:
    """Any dim of the pieces."""
    output = op.output_shape
    dim = op.argument("dim", 0) % len(output)
    count = len(op.tensors)
    for shard in op.shards(output):
        if shard.dim != dim:
            yield Rule((Shard(shard.dim - (shard.dim > dim), shard.blocks),) * count, shard)
    if all(node.meta["val"].is_floating_point() for node in op.tensors):
        yield Rule((PARTIAL,) * count, PARTIAL)


def pad(op: Operator) -> Iterator[Rule]:
    """Dims that are not padded."""
    shape, amounts = op.shape("self"), list(op.argument("pad"))
    rank = len(shape)
    padded = {rank - 1 - i // 2 for i, amount in enumerate(amounts) if amount != 0}
    # Modes other than constant read the rank of the argument, not its sizes, so other dims stay free.
    for shard in op.shards(shape):
        if shard.dim not in padded:
            yield Rule((shard,), shard)
    if not op.argument("value") or op.argument("mode", "constant") != "constant":
        yield from linear_map(op)


def repeat(op: Operator) -> Iterator[Rule]:
    """``repeat``: a dim repeated r times is sharded inside each of r parts."""
    shape, times = op.shape("self"), list(op.argument("repeats"))
    offset = len(times) - len(shape)
    for shard in op.shards(shape):
        count = times[shard.dim + offset]
        yield Rule((shard,), Shard(shard.dim + offset, shard.blocks * count))
    yield from linear_map(op)


def repeat_interleave(op: Operator) -> Iterator[Rule]:
    """Every element r times in place: pieces stay pieces."""
    dim = op.argument("dim")
    shape = op.shape("self")
    if dim is None:
        return
    repeated = dim % len(shape)
    for shard in op.shards(shape):
        if shard.dim != repeated or (op.argument("output_size") is None and shape[repeated] != 0):
            yield Rule((shard,), shard)
    yield from linear_map(op)


def other_dims(op: Operator) -> Iterator[Rule]:
    """Operators along a dim, or some, that keep the shape (roll, flip, cumsum, softmax): other dims."""
    shape = op.shape("self")
    dims = op.argument("dims", op.argument("dim"))
    if dims is None or dims == [] or not shape:
        return
    used = {d % len(shape) for d in ([dims] if isinstance(dims, int) else dims)}
    for shard in op.shards(shape):
        if shard.dim not in used:
            yield Rule((shard,), shard)


def other_dims_linear(op: Operator) -> Iterator[Rule]:
    """As ``other_dims``, for linear operators."""
    yield from other_dims(op)
    yield from linear_map(op)


def triangle(op: Operator) -> Iterator[Rule]:
    """``tril`` and ``triu``: batch dims."""
    for shard in op.shards(op.shape("self")[:-2]):
        yield Rule((shard,), shard)
    yield from linear_map(op)
