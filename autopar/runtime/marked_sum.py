"""One number summed over all ranks, with a mark of the call that it is for.

Where ranks make different calls, as an evaluation on rank 0 alone, the sums of one would pair with those of
the other. Each is one number, so nothing would fail: a loss would be added to a norm. The mark tells them
apart. On a GPU there is none, since the host would have to wait to read it.
"""

from __future__ import annotations

import zlib

import torch
import torch.distributed as dist
from torch import Tensor

from autopar.runtime.mesh import RankMesh

_NUM_MARKS = 2**20  # sums of as many as there may be ranks are exact in float64


class MarkedSum:
    """A sum over all ranks of a mesh.

    Args:
        call: what the ranks do, with the step: the same on all of them.

    Attributes:
        dtype: of the sum.
    """

    def __init__(self, mesh: RankMesh, call: str) -> None:
        self._mesh = mesh
        on_cpu = mesh.device.type == "cpu"
        self.dtype = torch.float64 if on_cpu else torch.float32
        self._mark = float(zlib.crc32(call.encode()) % _NUM_MARKS) if on_cpu and mesh.size > 1 else None
        self._total: Tensor | None = None
        self._work: dist.Work | None = None

    @property
    def has_begun(self) -> bool:
        """Whether ``begin`` was called since the last ``wait``."""
        return self._total is not None

    def begin(self, value: Tensor) -> None:
        """Takes this rank's summand, a scalar of ``dtype`` that is written to; returns at once."""
        self._total = value
        if self._mark is not None:
            self._total = torch.tensor([float(value), self._mark], dtype=self.dtype)
        if self._mesh.size > 1:
            self._work = dist.all_reduce(self._total, group=self._mesh.world_group, async_op=True)

    def wait(self) -> Tensor:
        """The sum, the same scalar on every rank.

        Raises:
            torch.distributed.DistError: another rank has made another call; ``Watchdog.guard`` says which.
        """
        if self._work is not None:
            self._work.wait()
        total, self._total, self._work = self._total, None, None
        assert total is not None
        if self._mark is None:
            return total
        if float(total[1]) != self._mark * self._mesh.size:
            raise dist.DistError("another rank makes another call at the same time")
        return total[0].clone()
