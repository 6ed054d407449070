"""Starting values into this rank's pieces, one whole parameter in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autopar.runtime.initialise import InitialState
from autopar.runtime.mesh import RankMesh
from autopar.runtime.storage import StoredParameter, local_tensor


def fill(
    parameters: Mapping[str, nn.Parameter],
    parameter_forms: Mapping[str, StoredParameter],
    buffers: Mapping[str, Tensor],
    buffer_forms: Mapping[str, StoredParameter],
    initial: InitialState,
    mesh: RankMesh,
) -> None:
    """Gives this rank's parameters and buffers their starting values, in place."""
    with torch.no_grad():
        for name, whole in initial.values({*parameters, *buffers}):
            if name in buffers:
                buffers[name].copy_(buffer_forms[name].local_piece(whole, mesh.here.tensor))
                continue
            piece = parameter_forms[name].local_piece(whole, mesh.here.tensor)
            fill_parameter(parameters[name], piece, mesh)


def fill_parameter(parameter: nn.Parameter, piece: Tensor, mesh: RankMesh) -> None:
    """Copies this rank's part of its shard group of a tensor rank's piece into a parameter."""
    local = local_tensor(parameter.detach())
    dim = data_dim(parameter)
    if dim is None:
        local.copy_(piece)
        return
    parts = piece.chunk(mesh.shard_group, dim)
    if mesh.shard < len(parts):
        local.copy_(parts[mesh.shard])


def data_dim(parameter: Tensor) -> int | None:
    """The dim along which the ranks of a shard group hold different parts; None when they hold the same."""
    names = getattr(getattr(parameter, "device_mesh", None), "mesh_dim_names", None) or ()
    if "data" not in names:
        return None
    placement = parameter.placements[names.index("data")]  # type: ignore[attr-defined]
    return int(placement.dim)
