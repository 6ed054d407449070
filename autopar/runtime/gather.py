"""Whole tensors from the pieces of all ranks, one at a time, under original names and shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from autopar.runtime.mesh import RankMesh
from autopar.runtime.storage import StoredParameter, whole_tensor


def gather(
    names: Sequence[str],
    rank_of: Mapping[str, int],
    forms: Mapping[str, StoredParameter],
    piece: Callable[[str], Tensor | None],
    mesh: RankMesh,
) -> Iterator[tuple[str, Tensor | None]]:
    """Yields the whole tensor of each name on every rank; a collective of all of them.

    Args:
        names: the same on every rank.
        rank_of: position on the pipeline axis of a rank that has it.
        forms: of this rank's own pieces.
        piece: this rank's piece (a DTensor where it is one), or None where it has no value (a missing
            gradient).
    """
    here = mesh.here
    for name in names:
        owner = rank_of[name]
        mine = piece(name) if owner == here.pipeline else None
        whole = None if mine is None else forms[name].to_original(whole_tensor(mine.detach()))
        if mesh.pipeline > 1:
            whole = from_stage(whole, owner, mesh)
        yield name, whole


def from_stage(whole: Tensor | None, owner: int, mesh: RankMesh) -> Tensor | None:
    """A tensor of one position on the pipeline axis on all of them; a collective of the pipeline line."""
    here = mesh.here
    source, group = mesh.rank_at(owner, here.data, here.tensor), mesh.pipeline_group
    described = [None if whole is None else (tuple(whole.shape), whole.dtype)]
    dist.broadcast_object_list(described, src=source, group=group, device=mesh.device)
    if described[0] is None:
        return None
    shape, dtype = described[0]
    if whole is None:
        whole = torch.empty(shape, dtype=dtype, device=mesh.device)
    whole = whole.contiguous()
    dist.broadcast(whole, src=source, group=group)
    return whole
