"""Convolutions and what surrounds them: samples, channels, groups."""

from __future__ import annotations

from collections.abc import Iterator

from autopar.sharding.placement import PARTIAL, Placement, Shard
from autopar.sharding.rule import Rule
from autopar.sharding.rules.operator import Operator


def convolution(op: Operator) -> Iterator[Rule]:
    """Weight ``(out, in / groups, ...)``; of a transposed convolution ``(in, out / groups, ...)``."""
    x, w = op.shape("input"), op.shape("weight")
    if len(x) != len(w):
        return  # a single sample without a batch dim
    has_bias = op.has("bias")
    groups = op.argument("groups", 1)
    transposed = "output_padding" in op.arguments and op.argument("transposed", True)
    out_dim, in_dim = (1, 0) if transposed else (0, 1)
    for shard in op.shards(x[:1]):
        yield op.rule(shard, {"input": shard})
    for blocks in op.fused if groups == 1 else ():
        if op.divides(w[out_dim], blocks):
            wanted: dict[str, Placement] = {"weight": Shard(out_dim, blocks)}
            if has_bias:
                wanted["bias"] = Shard(0, blocks)
            yield op.rule(Shard(1, blocks), wanted)
        if op.divides(w[in_dim], blocks):
            wanted = {"input": Shard(1, blocks), "weight": Shard(in_dim, blocks)}
            if has_bias:
                wanted["bias"] = PARTIAL
            yield op.rule(PARTIAL, wanted)
    if groups > 1 and groups % op.degree == 0:
        # Whole groups on each rank: dim 0 of the weight runs over groups in both layouts.
        wanted = {"input": Shard(1), "weight": Shard(0)}
        if has_bias:
            wanted["bias"] = Shard(0)
        yield op.rule(Shard(1), wanted)


def pooling(op: Operator) -> Iterator[Rule]:
    """Pooling and resampling: every dim but the spatial ones; both results of the variants with indices."""
    name = "input" if "input" in op.arguments else "self"
    shape = op.shape(name)
    spatial = op.node.target._schema.name  # type: ignore[union-attr]
    count = next((int(d) for d in "123" if f"{d}d" in spatial), len(shape))
    for shard in op.shards(shape[: max(len(shape) - count, 0)]):
        yield op.rule(shard, {name: shard})
