"""Where this rank sits in the (pipeline, data, tensor) mesh, and the process groups along its axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from autopar.plan.decisions import MESH_AXES


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Position of a rank."""

    pipeline: int
    data: int
    tensor: int


@dataclass(frozen=True)
class RankMesh:
    """The mesh as one rank sees it.

    Attributes:
        pipeline, data, tensor: degrees.
        order: the axes from the one that varies slowest over the ranks to the one that varies fastest.
        shard_group: neighbouring ranks of the data axis among which ZeRO divides; divides ``data``.
        shards_alone: whether FSDP manages parameters in a shard group of one rank, too.
        rank: global rank.
        device: where this rank computes.
        stage_mesh: device mesh of the ranks that hold the same stages, with the axes ``replica`` (across
            shard groups), ``data`` (inside one) and ``tensor`` as far as they have more than one rank
            (``data`` also where a rank shards alone); None where none has.
        tensor_group, data_group, pipeline_group: lines of this rank; None where the degree is 1.
        backward_group: the pipeline line again: activations and gradients travel in separate groups, so that
            a send in one direction never waits for a receive in the other.
        world_group: all ranks of the mesh.
        timeout: of every group.
    """

    pipeline: int
    data: int
    tensor: int
    order: tuple[str, str, str]
    shard_group: int
    shards_alone: bool
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
        degrees, strides = self._degrees(), self._strides()
        return Coordinates(**{axis: self.rank // strides[axis] % degrees[axis] for axis in MESH_AXES})

    @property
    def shard(self) -> int:
        """Position of this rank in its shard group."""
        return self.here.data % self.shard_group

    @property
    def num_replicas(self) -> int:
        """Number of shard groups, which hold the same."""
        return self.data // self.shard_group

    def divides(self, zero: int) -> bool:
        """Whether ZeRO of this level has FSDP manage the parameters, and ranks hold different pieces."""
        return zero > 0 and (self.shard_group > 1 or self.shards_alone)

    def rank_at(self, pipeline: int, data: int, tensor: int) -> int:
        """Global rank at given coordinates."""
        strides = self._strides()
        return pipeline * strides["pipeline"] + data * strides["data"] + tensor * strides["tensor"]

    @property
    def tensor_mesh(self) -> DeviceMesh | None:
        """One-axis mesh of the tensor line; None when the degree is 1."""
        return self.stage_mesh["tensor"] if self.stage_mesh is not None and self.tensor > 1 else None

    @property
    def data_mesh(self) -> DeviceMesh | None:
        """Mesh along which FSDP divides: the shard group, before it the replicas; None without."""
        if self.stage_mesh is None or not self.divides(1):
            return None
        return self.stage_mesh["replica", "data"] if self.num_replicas > 1 else self.stage_mesh["data"]

    def close(self) -> None:
        """Ends the groups that only this object knows.

        DTensor keeps the groups of a device mesh in its caches, for every later mesh of the same ranks: they
        stay.
        """
        for group in (self.pipeline_group, self.backward_group, self.world_group):
            if group is not None:
                dist.destroy_process_group(group)

    def _degrees(self) -> dict[str, int]:
        return {"pipeline": self.pipeline, "data": self.data, "tensor": self.tensor}

    def _strides(self) -> dict[str, int]:
        degrees, strides, stride = self._degrees(), {}, 1
        for axis in reversed(self.order):
            strides[axis] = stride
            stride *= degrees[axis]
        return strides


def make_mesh(
    pipeline: int,
    data: int,
    tensor: int,
    device: torch.device,
    timeout: timedelta,
    order: tuple[str, str, str] | None = None,
    shard_group: int | None = None,
    shards_alone: bool = False,
) -> RankMesh:
    """Builds the mesh and its groups; a collective of all ranks of the default process group.

    Args:
        order: the axes, slowest first; default ``MESH_AXES``.
        shard_group: ranks among which ZeRO divides; default: the data axis.
        shards_alone: let FSDP manage parameters also where a shard group has one rank.
    """
    order, shard_group = order or MESH_AXES, shard_group or data
    degrees = {"pipeline": pipeline, "data": data, "tensor": tensor}
    ranks = torch.arange(pipeline * data * tensor).view([degrees[axis] for axis in order])
    # (pipeline, replica, data, tensor) whatever the order of the ranks.
    grid = ranks.permute([order.index(axis) for axis in MESH_AXES])
    grid = grid.reshape(pipeline, data // shard_group, shard_group, tensor)

    def line(*axes: int, least: int = 2) -> dist.ProcessGroup | None:
        lines = grid.movedim(axes, tuple(range(-len(axes), 0))).flatten(-len(axes))
        return own_group(lines.flatten(0, -2).tolist(), timeout) if lines.shape[-1] >= least else None

    groups = {"replica": line(1), "data": line(2, least=1 if shards_alone else 2), "tensor": line(3)}
    axes = {name: group for name, group in groups.items() if group is not None}
    data_group = groups["data"] if shard_group == data else groups["replica"]
    if 1 < shard_group < data:
        data_group = line(1, 2)
    rank = dist.get_rank()
    stage_mesh = None
    if axes:
        stage = grid[int((grid == rank).nonzero()[0, 0])]
        stage_mesh = DeviceMesh.from_group(
            list(axes.values()),
            device.type,
            mesh=stage.reshape([dist.get_world_size(group) for group in axes.values()]),
            mesh_dim_names=tuple(axes),
        )
    world = own_group([list(range(grid.numel()))], timeout)
    assert world is not None
    return RankMesh(
        pipeline=pipeline,
        data=data,
        tensor=tensor,
        order=order,
        shard_group=shard_group,
        shards_alone=shards_alone,
        rank=rank,
        device=device,
        stage_mesh=stage_mesh,
        tensor_group=groups["tensor"],
        data_group=data_group,
        pipeline_group=line(0),
        backward_group=line(0),
        world_group=world,
        timeout=timeout,
    )


def own_group(lines: Sequence[Sequence[int]], timeout: timedelta) -> dist.ProcessGroup | None:
    """Makes one process group per line of ranks, and returns this rank's; a collective of all ranks.

    Every rank takes part in making every group: groups made by their members alone
    (``use_local_synchronization``) are named by how many groups a rank has made before, which differs
    between ranks.
    """
    own: dist.ProcessGroup | None = None
    for ranks in lines:
        group = dist.new_group(list(ranks), timeout=timeout)
        if isinstance(group, dist.ProcessGroup):
            own = group
    return own
