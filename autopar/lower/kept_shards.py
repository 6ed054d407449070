"""Inputs of products that are kept as shards and gathered again in the backward pass.

A column-parallel product under sequence parallelism reads the whole of a value of which each rank has a
shard. Its weight's gradient needs the whole once more; keeping the shard and gathering again, beside the
product that makes the input's gradient, saves the memory that sequence parallelism is for (Korthikanti et al.
2022, arXiv 2205.05198, section 4.2.2).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from autopar.lower.axis import TensorAxis
from autopar.lower.collectives import from_pieces


class KeptShard:
    """One gathered value of one run of a block; its readers' backward passes share what is gathered again.

    It holds no tensor from forward to backward: each reader saves the shard where autograd sees it.

    Args:
        dim: that is sharded.
        blocks: equal parts inside each of which it is.
    """

    def __init__(self, axis: TensorAxis, dim: int, blocks: int) -> None:
        self._axis = axis
        self._shard = dim, blocks
        self._num_readers = 0
        self._arriving: Callable[[], Tensor] | None = None
        self._whole: Tensor | None = None

    def add_reader(self) -> None:
        """Says that someone will ask for the whole once."""
        self._num_readers += 1

    def begin(self, shard: Tensor) -> Callable[[], Tensor]:
        """Begins to gather, unless another reader has; call what it returns for the whole, once."""
        if self._whole is None and self._arriving is None:
            self._arriving = self._axis.begin_all_gather(shard)
        return self._take

    def _take(self) -> Tensor:
        if self._whole is None:
            assert self._arriving is not None
            self._whole = from_pieces(self._arriving(), *self._shard)
            self._arriving = None
        whole = self._whole
        self._num_readers -= 1
        if self._num_readers <= 0:
            self._whole = None
        return whole


def kept_shard(axis: TensorAxis, dim: int, blocks: int) -> KeptShard:
    """What the readers of one gathered value share."""
    return KeptShard(axis, dim, blocks)
