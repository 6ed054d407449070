"""The mean loss of a step on every rank, brought together while the rest of the step still goes on."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from autopar.runtime.mesh import RankMesh


class MeanLoss:
    """Averages the losses of the data ranks; every rank gives one, or None, and then waits.

    A rank that had to wait for the others' losses at the end of its step could not begin its update while
    they are still busy, as ranks of a pipeline are at different times. On CPUs the sum therefore begins as
    soon as the loss is there. On a GPU nothing waits for it on the host, and a kernel that waits from the
    beginning of a step would only be in the way: there it begins at the end.
    """

    def __init__(self, mesh: RankMesh) -> None:
        self._mesh = mesh
        self._precise = torch.float64 if mesh.device.type == "cpu" else torch.float32
        self._total: Tensor | None = None
        self._work: dist.Work | None = None

    def give(self, loss: Tensor | None) -> None:
        """Takes this rank's mean loss; None where the last stage is elsewhere."""
        mesh = self._mesh
        self._total = torch.zeros((), dtype=self._precise, device=mesh.device)
        if loss is not None:
            self._total += loss.to(self._precise) / (mesh.data * mesh.tensor)
        if mesh.device.type == "cpu":
            self._begin()

    def wait(self) -> Tensor:
        """The mean over all samples, the same on every rank."""
        if self._work is None:
            self._begin()
        if self._work is not None:
            self._work.wait()
        total, self._total, self._work = self._total, None, None
        assert total is not None
        return total

    def _begin(self) -> None:
        assert self._total is not None
        if self._mesh.size > 1:
            self._work = dist.all_reduce(self._total, group=self._mesh.world_group, async_op=True)
