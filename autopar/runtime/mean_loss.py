"""The mean loss of a step on every rank, brought together while the rest of the step still goes on."""

from __future__ import annotations

import torch
from torch import Tensor

from autopar.runtime.marked_sum import MarkedSum
from autopar.runtime.mesh import RankMesh


class MeanLoss:
    """Averages the losses of the data ranks; every rank gives one, or None, and then waits.

    A rank that had to wait for the others' losses at the end of its step could not begin its update while
    they are still busy, as ranks of a pipeline are at different times. On CPUs the sum therefore begins as
    soon as the loss is there. On a GPU nothing waits for it on the host, and a kernel that waits from the
    beginning of a step would only be in the way: there it begins at the end.

    Args:
        call: what the ranks do, with the step.
    """

    def __init__(self, mesh: RankMesh, call: str) -> None:
        self._mesh = mesh
        self._sum = MarkedSum(mesh, call)
        self._share: Tensor | None = None

    def give(self, loss: Tensor | None) -> None:
        """Takes this rank's mean loss; None where the last stage is elsewhere."""
        mesh = self._mesh
        self._share = torch.zeros((), dtype=self._sum.dtype, device=mesh.device)
        if loss is not None:
            self._share += loss.to(self._sum.dtype) / (mesh.data * mesh.tensor)
        if mesh.device.type == "cpu":
            self._sum.begin(self._share)

    def wait(self) -> Tensor:
        """The mean over all samples, the same on every rank."""
        assert self._share is not None
        if not self._sum.has_begun:
            self._sum.begin(self._share)
        return self._sum.wait()
