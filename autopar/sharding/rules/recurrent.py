"""Recurrent layers as one operator: samples."""

from __future__ import annotations

from collections.abc import Iterator

from autopar.sharding.placement import Shard
from autopar.sharding.rule import Rule
from autopar.sharding.rules.operator import Operator


def recurrent(op: Operator) -> Iterator[Rule]:
    """LSTM, GRU and plain recurrent layers; states are ``(layers, batch, hidden)``."""
    shape = op.shape("input")
    batch = 0 if op.argument("batch_first") else 1
    if len(shape) != 3 or not op.divides(shape[batch]):
        return
    drops = op.argument("dropout", 0.0) > 0 and op.argument("train", True)
    num_results = len(op.value)
    yield op.rule(
        Shard(batch),
        {"input": Shard(batch), "hx": Shard(1)},
        local="own_stream" if drops else None,
        rest=(Shard(1),) * (num_results - 1),
    )
