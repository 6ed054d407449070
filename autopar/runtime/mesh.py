"""Where this rank sits in the (pipeline, data, tensor) mesh, and the process groups along its axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Position of a rank; the tensor axis varies fastest, then data, then pipeline."""

    pipeline: int
    data: int
    tensor: int


@dataclass(frozen=True)
class RankMesh:
    """The mesh as one rank sees it.

    Attributes:
        pipeline, data, tensor: degrees.
        rank: global rank.
        device: where this rank computes.
        stage_mesh: device mesh of this rank's stage, with the axes ``data`` and ``tensor`` as far as their
            degree is more than 1; None where neither is.
        tensor_group, data_group, pipeline_group: lines of this rank; None where the degree is 1.
        backward_group: the pipeline line again: activations and gradients travel in separate groups, so that
            a send in one direction never waits for a receive in the other.
        world_group: all ranks of the mesh.
        timeout: of every group.
    """

    pipeline: int
    data: int
    tensor: int
    rank: int
    device: torch.device
    stage_mesh: DeviceMesh | None
    tensor_group: dist.ProcessGroup | None
    data_group: dist.ProcessGroup | None
    pipeline_group: dist.ProcessGroup | None
    backward_group: dist.ProcessGroup | None
    world_group: dist.ProcessGroup
    timeout: timedelta

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.pipeline * self.data * self.tensor

    @property
    def here(self) -> Coordinates:
        """Coordinates of this rank."""
        return Coordinates(
            self.rank // (self.data * self.tensor),
            self.rank // self.tensor % self.data,
            self.rank % self.tensor,
        )

    def rank_at(self, pipeline: int, data: int, tensor: int) -> int:
        """Global rank at given coordinates."""
        return (pipeline * self.data + data) * self.tensor + tensor

    @property
    def tensor_mesh(self) -> DeviceMesh | None:
        """One-axis mesh of the tensor line; None when the degree is 1."""
        return self.stage_mesh["tensor"] if self.stage_mesh is not None and self.tensor > 1 else None

    @property
    def data_mesh(self) -> DeviceMesh | None:
        """One-axis mesh of the data line; None when the degree is 1."""
        return self.stage_mesh["data"] if self.stage_mesh is not None and self.data > 1 else None

    def close(self) -> None:
        """Ends the groups that only this object knows.

        DTensor keeps the groups of a device mesh in its caches, for every later mesh of the same ranks: they
            stay.
        """
        for group in (self.pipeline_group, self.backward_group, self.world_group):
            if group is not None:
                dist.destroy_process_group(group)


def make_mesh(pipeline: int, data: int, tensor: int, device: torch.device, timeout: timedelta) -> RankMesh:
    """Builds the mesh and its groups; a collective of all ranks of the default process group."""
    rank = dist.get_rank()
    grid = torch.arange(pipeline * data * tensor).view(pipeline, data, tensor)

    def line(axis: int) -> dist.ProcessGroup | None:
        if grid.shape[axis] == 1:
            return None
        return own_group(grid.movedim(axis, -1).flatten(0, -2).tolist(), timeout)

    groups = {"data": line(1), "tensor": line(2)}
    axes = [(name, group) for name, group in groups.items() if group is not None]
    stage_mesh = None
    if axes:
        stage = grid[rank // (data * tensor)]
        shape = [size for size in stage.shape if size > 1]
        stage_mesh = DeviceMesh.from_group(
            [group for _, group in axes],
            device.type,
            mesh=stage.reshape(shape),
            mesh_dim_names=tuple(name for name, _ in axes),
        )
    world = own_group([list(range(grid.numel()))], timeout)
    assert world is not None
    return RankMesh(
        pipeline=pipeline,
        data=data,
        tensor=tensor,
        rank=rank,
        device=device,
        stage_mesh=stage_mesh,
        tensor_group=groups["tensor"],
        data_group=groups["data"],
        pipeline_group=line(0),
        backward_group=line(0),
        world_group=world,
        timeout=timeout,
    )


def own_group(lines: Sequence[Sequence[int]], timeout: timedelta) -> dist.ProcessGroup | None:
    """Makes one process group per line of ranks, and returns this rank's; a collective of all ranks.

    Every rank takes part in making every group: groups made by their members alone
    (``use_local_synchronization``)
    are named by how many groups a rank has made before, which differs between ranks.
    """
    own: dist.ProcessGroup | None = None
    for ranks in lines:
        group = dist.new_group(list(ranks), timeout=timeout)
        if isinstance(group, dist.ProcessGroup):
            own = group
    return own
