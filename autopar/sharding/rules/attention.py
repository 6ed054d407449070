"""Scaled dot-product attention: samples, heads, and queries where the mask is not implied by position."""

from __future__ import annotations

from collections.abc import Iterator

from autopar.sharding.placement import REPLICATE, Placement, Shard
from autopar.sharding.rule import Rule
from autopar.sharding.rules.operator import Operator


def scaled_dot_product_attention(op: Operator) -> Iterator[Rule]:
    """``query (..., heads, L, E)``, ``key`` and ``value (..., heads, S, E)``, mask broadcast to ``(...,
    heads, L, S)``.

    Heads may be grouped (``enable_gqa``): rank r then holds the r-th run of query heads and their key heads.
    """
    query, key, value = op.shape("query"), op.shape("key"), op.shape("value")
    if not len(query) == len(key) == len(value) >= 3:
        return
    local = "own_stream" if op.argument("dropout_p", 0.0) > 0 else None
    for dim in range(len(query) - 2):
        sizes = (query[dim], key[dim], value[dim])
        grouped = bool(op.argument("enable_gqa", False)) and dim == len(query) - 3
        if all(op.divides(size) for size in sizes) and (grouped or len(set(sizes)) == 1):
            mask = _mask(op, Shard(dim))
            if mask is not None:
                shard = Shard(dim)
                yield op.rule(shard, {**mask, "query": shard, "key": shard, "value": shard}, local=local)
    rows = Shard(len(query) - 2)
    if op.divides(query[-2]) and not op.argument("is_causal", False):
        mask = _mask(op, rows)
        if mask is not None:
            yield op.rule(rows, {**mask, "query": rows}, local=local)


def _mask(op: Operator, shard: Shard) -> dict[str, Placement] | None:
    """Placement of the mask when queries are placed ``shard``; None when it does not divide."""
    if not op.has("attn_mask"):
        return {}
    shape = op.shape("attn_mask")
    dim = shard.dim - (len(op.shape("query")) - len(shape))
    if dim < 0 or shape[dim] == 1:
        return {"attn_mask": REPLICATE}
    return {"attn_mask": Shard(dim)} if op.divides(shape[dim]) else None
