"""Normalisations: any dim that is not reduced over."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from autopar.sharding.placement import Placement, Shard
from autopar.sharding.rule import Rule
from autopar.sharding.rules.operator import Operator

aten = torch.ops.aten


def layer_norm(op: Operator) -> Iterator[Rule]:
    """``layer_norm`` and ``rms_norm``: the dims before the normalised ones."""
    shape = op.shape("input")
    for shard in op.shards(shape[: len(shape) - len(op.argument("normalized_shape"))]):
        yield op.rule(shard, {"input": shard})


def group_norm(op: Operator) -> Iterator[Rule]:
    """Samples, or whole groups of channels."""
    shape = op.shape("input")
    for shard in op.shards(shape[:1]):
        yield op.rule(shard, {"input": shard})
    if op.argument("num_groups") % op.degree == 0:
        wanted: dict[str, Placement] = {"input": Shard(1)}
        wanted |= {name: Shard(0) for name in ("weight", "bias") if op.has(name)}
        yield op.rule(Shard(1), wanted)


def batch_norm(op: Operator) -> Iterator[Rule]:
    """Channels, with their statistics; samples too where the statistics are not computed from them."""
    shape = op.shape("input")
    if op.divides(shape[1]):
        wanted: dict[str, Placement] = {"input": Shard(1)}
        wanted |= {n: Shard(0) for n in ("weight", "bias", "running_mean", "running_var") if op.has(n)}
        yield op.rule(Shard(1), wanted)
    if not op.argument("training"):
        for shard in op.shards(shape):
            if shard.dim != 1:
                yield op.rule(shard, {"input": shard})


def instance_norm(op: Operator) -> Iterator[Rule]:
    """Channels; samples where no running statistics are averaged over them."""
    shape = op.shape("input")
    if op.divides(shape[1]):
        wanted: dict[str, Placement] = {"input": Shard(1)}
        wanted |= {n: Shard(0) for n in ("weight", "bias", "running_mean", "running_var") if op.has(n)}
        yield op.rule(Shard(1), wanted)
    if not op.has("running_mean"):
        for shard in op.shards(shape[:1]):
            yield op.rule(shard, {"input": shard})
