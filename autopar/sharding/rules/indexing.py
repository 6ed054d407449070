"""Look-ups by index: embedding, index, gather, scatter, and orderings along a dim."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from autopar.sharding.placement import PARTIAL, REPLICATE, Placement, Shard
from autopar.sharding.rule import Rule
from autopar.sharding.rules.operator import Operator, broadcast, is_tensor_node, shape_of
from autopar.sharding.rules.pointwise import aligned

aten = torch.ops.aten


def embedding(op: Operator) -> Iterator[Rule]:
    """``weight (vocabulary, hidden)`` at ``indices``: tokens, hidden, or a masked look-up in own rows."""
    weight, indices = op.shape("weight"), op.shape("indices")
    counts_tokens = bool(op.argument("scale_grad_by_freq", False))
    for blocks in op.fused:
        if op.divides(weight[1], blocks):
            yield op.rule(Shard(len(indices), blocks), {"weight": Shard(1, blocks)})
    if counts_tokens:
        return
    for shard in op.shards(indices):
        yield op.rule(shard, {"indices": shard})
    if op.divides(weight[0]):
        yield op.rule(PARTIAL, {"weight": Shard(0)}, local="embedding_vocab")


def index(op: Operator) -> Iterator[Rule]:
    """``self[i, j, ...]`` with integer indices at neighbouring dims."""
    shape = op.shape("self")
    indices = list(op.argument("indices"))
    given = [d for d, i in enumerate(indices) if is_tensor_node(i)]
    tensors = [indices[d] for d in given]
    if not given or given != list(range(given[0], given[-1] + 1)):
        return
    if any(t.meta["val"].dtype in (torch.bool, torch.uint8) for t in tensors):
        return
    picked = broadcast([shape_of(t) for t in tensors])
    first, last = given[0], given[-1]
    for shard in op.shards(shape):
        if shard.dim < first or shard.dim > last:
            moved = shard.dim if shard.dim < first else shard.dim - len(given) + len(picked)
            yield op.rule(Shard(moved, shard.blocks), {"self": shard})
    for shard in op.shards(picked):
        placed = [aligned(shape_of(t), picked, shard) for t in tensors]
        yield op.rule(Shard(first + shard.dim, shard.blocks), {"indices": placed})


def index_select(op: Operator) -> Iterator[Rule]:
    """Other dims of the tensor, or the index."""
    shape, picked = op.shape("self"), op.shape("index")
    if not shape or not picked:
        return
    dim = op.argument("dim") % len(shape)
    for shard in op.shards(shape):
        if shard.dim != dim:
            yield op.rule(shard, {"self": shard})
    for shard in op.shards(picked):
        yield op.rule(Shard(dim, shard.blocks), {"index": shard})


def gather(op: Operator) -> Iterator[Rule]:
    """``gather`` and ``scatter``: dims other than the indexed one, where all tensors have the same size."""
    shape = op.shape("self")
    if not shape:
        return
    dim = op.argument("dim") % len(shape)
    names = [name for name in ("self", "index", "src") if op.has(name)]
    for shard in op.shards(shape):
        if shard.dim != dim and all(op.shape(name)[shard.dim] == shape[shard.dim] for name in names):
            yield op.rule(shard, dict.fromkeys(names, shard))


def gather_positions(op: Operator) -> Iterator[Rule]:
    """``gather`` alone: with the source whole, positions along the indexed dim are independent too."""
    yield from gather(op)
    shape, picked = op.shape("self"), op.shape("index")
    if not shape:
        return
    dim = op.argument("dim") % len(shape)
    for shard in op.shards(picked):
        if shard.dim == dim:
            yield op.rule(shard, {"index": shard})


def ordering(op: Operator) -> Iterator[Rule]:
    """``sort``, ``topk``, ``argsort``: dims other than the ordered one; values and indices alike."""
    shape = op.shape("self")
    if not shape:
        return
    dim = op.argument("dim", -1) % len(shape)
    for shard in op.shards(shape):
        if shard.dim != dim:
            yield op.rule(shard, {"self": shard})


def difference(op: Operator) -> Iterator[Rule]:
    """``diff``: dims other than the one differenced, with what is put before or after."""
    shape = op.shape("self")
    dim = op.argument("dim", -1) % len(shape)
    for shard in op.shards(shape):
        if shard.dim != dim:
            names = [name for name in ("self", "prepend", "append") if op.has(name)]
            yield op.rule(shard, dict.fromkeys(names, shard))


def one_hot(op: Operator) -> Iterator[Rule]:
    """Tokens, when the number of classes is given."""
    if op.argument("num_classes", -1) > 0:
        for shard in op.shards(op.shape("self")):
            yield op.rule(shard, {"self": shard})


def new_like(op: Operator) -> Iterator[Rule]:
    """``new_zeros`` and its kin read only dtype and device: the argument may be placed in any way."""
    placements: list[Placement] = [*op.shards(op.shape("self"))]
    if op.tensors[0].meta["val"].is_floating_point():
        placements.append(PARTIAL)
    for placement in placements:
        yield op.rule(REPLICATE, {"self": placement})
