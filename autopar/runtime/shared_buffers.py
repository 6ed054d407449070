"""Buffers that the data ranks would carry on apart take over the values of the first data rank, as under
DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from autopar.runtime.mesh import RankMesh


class SharedBuffers:
    """Of one rank.

    Args:
        tensors: this rank's pieces, by name; the same names on every data rank.
    """

    def __init__(self, tensors: Mapping[str, Tensor], mesh: RankMesh) -> None:
        self._tensors = [tensors[name] for name in sorted(tensors)] if mesh.data > 1 else []
        self._group = mesh.data_group
        self._first = mesh.rank_at(mesh.here.pipeline, 0, mesh.here.tensor)
        self._is_first = mesh.here.data == 0
        self._may_differ = False

    def note_change(self) -> None:
        """Called after the model has run in training mode."""
        self._may_differ = True

    def share(self) -> None:
        """Takes over the first data rank's values, if any have changed; a collective of the data ranks."""
        if not self._tensors or not self._may_differ:
            return
        self._may_differ = False
        pieces = [tensor.detach().reshape(-1).view(torch.uint8) for tensor in self._tensors]
        flat = torch.cat(pieces)
        dist.broadcast(flat, src=self._first, group=self._group)
        if self._is_first:
            return
        offset = 0
        with torch.no_grad():
            for tensor, piece in zip(self._tensors, pieces, strict=True):
                given = flat.narrow(0, offset, piece.numel()).clone()  # a clone lies aligned
                tensor.copy_(given.view(tensor.dtype).view(tensor.shape))
                offset += piece.numel()
