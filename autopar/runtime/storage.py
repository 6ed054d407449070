"""How a parameter lies in memory: fused parts as a dim of their own, and one rank's piece on the tensor axis.

A dim that fuses g equal parts (QKV, gate-up) is stored as ``(g, n/g)`` at every degree, so that a shard of
every part is an ordinary shard, and a checkpoint does not depend on the degree. Flattening it again for the
computation is free. A parameter without dims (a temperature) is stored as one element along a dim of its own,
since FSDP divides dims.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import Replicate as ReplicateOnMesh
from torch.distributed.tensor import Shard as ShardOnMesh

from autopar.capture.model_graph import ParameterSpec
from autopar.errors import PlanError
from autopar.sharding.placement import Placement, Shard


@dataclass(frozen=True, slots=True)
class StoredParameter:
    """The stored form of one parameter on one tensor axis.

    Attributes:
        name: canonical name.
        shape: original whole shape.
        fused: (dim, parts) of the fused dims, ascending.
        placement: on the tensor axis, in original dims.
        degree: of the tensor axis.
        requires_grad: False when frozen.
        is_buffer: stored as it is, also where it has no dims: programs read buffers directly.
    """

    name: str
    shape: tuple[int, ...]
    fused: tuple[tuple[int, int], ...]
    placement: Placement
    degree: int
    requires_grad: bool
    is_buffer: bool = False

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Whole shape with every fused dim n as (g, n/g); (1,) in the place of ()."""
        parts = dict(self.fused)
        shape: list[int] = []
        for dim, size in enumerate(self.shape):
            shape += [parts[dim], size // parts[dim]] if dim in parts else [size]
        return tuple(shape) if self.shape or self.is_buffer else (1,)

    @property
    def stored_dim(self) -> int | None:
        """The sharded dim of the stored shape; None when replicated on the tensor axis."""
        if not isinstance(self.placement, Shard):
            return None
        return self.placement.dim + sum(1 for dim, _ in self.fused if dim <= self.placement.dim)

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Stored shape of one rank's piece."""
        shape = list(self.stored_shape)
        if self.stored_dim is not None:
            shape[self.stored_dim] //= self.degree
        return tuple(shape)

    def to_stored(self, whole: Tensor) -> Tensor:
        """A view of the whole original tensor in the stored shape."""
        return whole.reshape(self.stored_shape)

    def to_original(self, stored: Tensor) -> Tensor:
        """The inverse of ``to_stored``."""
        return stored.reshape(self.shape)

    def to_program(self, local: Tensor) -> Tensor:
        """This rank's stored piece in the shape in which a lowered block computes with it: a free view."""
        for dim, _ in self.fused:
            local = local.flatten(dim, dim + 1)
        return local if self.shape or self.is_buffer else local.reshape(())

    def local_piece(self, whole: Tensor, rank: int) -> Tensor:
        """A view of the piece of tensor rank ``rank`` of a whole original tensor."""
        stored = self.to_stored(whole)
        return stored if self.stored_dim is None else stored.chunk(self.degree, self.stored_dim)[rank]

    def wrap(self, local: Tensor, tensor_mesh: DeviceMesh | None) -> nn.Parameter:
        """A parameter that holds ``local``: a DTensor on the tensor mesh, plain where there is none."""
        if tensor_mesh is None:
            return nn.Parameter(local, requires_grad=self.requires_grad)
        stored = torch.empty(self.stored_shape, device="meta")
        placement = ReplicateOnMesh() if self.stored_dim is None else ShardOnMesh(self.stored_dim)
        tensor = DTensor.from_local(
            local, tensor_mesh, [placement], run_check=False, shape=stored.shape, stride=stored.stride()
        )
        return nn.Parameter(tensor, requires_grad=self.requires_grad)


def store(spec: ParameterSpec, placement: Placement, degree: int, is_buffer: bool = False) -> StoredParameter:
    """The stored form of a parameter or buffer.

    Raises:
        PlanError: the placement cuts across the fused parts, or does not divide.
    """
    fused = tuple(sorted((spec.fused_dims or {}).items()))
    if isinstance(placement, Shard):
        parts = dict(fused).get(placement.dim, 1)
        if parts != placement.blocks:
            raise PlanError(
                f"parameter '{spec.name}' has {parts} fused part(s) along dim {placement.dim}, but the"
                " plan places it"
                f" as {placement}; write shard({placement.dim}, {parts})"
            )
        if spec.spec.shape[placement.dim] % (degree * parts):
            raise PlanError(
                f"parameter '{spec.name}' has {spec.spec.shape[placement.dim]} elements along dim"
                f" {placement.dim},"
                f" which do not divide by {degree * parts}; choose a tensor degree that divides, or"
                " replicate it"
            )
    return StoredParameter(
        name=spec.name,
        shape=spec.spec.shape,
        fused=fused,
        placement=placement,
        degree=degree,
        requires_grad=spec.requires_grad,
        is_buffer=is_buffer,
    )


def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's plain tensor of a parameter, gradient or optimiser state; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def on_device(tensor: Tensor, device: torch.device, mesh: DeviceMesh | None = None) -> Tensor:
    """The same piece of the same tensor in the memory of ``device``, where collectives can reach it.

    Args:
        mesh: of the result, where it is a DTensor; default: that of ``tensor``.
    """
    local = local_tensor(tensor)
    if local.device.type == device.type:
        return tensor
    return rewrap(tensor, local.to(device), mesh)


def rewrap(tensor: Tensor, local: Tensor, mesh: DeviceMesh | None = None) -> Tensor:
    """``local`` in the form of ``tensor``, a DTensor where that is one; the inverse of ``local_tensor``.

    Args:
        mesh: of the result; default: that of ``tensor``.
    """
    if not isinstance(tensor, DTensor):
        return local
    return DTensor.from_local(
        local,
        mesh or tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def whole_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor of a sharded one; a collective of all ranks that hold pieces."""
    if not isinstance(tensor, DTensor):
        return tensor
    # One axis at a time, the data axis (the innermost cut) first: DTensor warns when it has to find this
    # order.
    for axis in range(tensor.device_mesh.ndim - 1):
        placements = list(tensor.placements)
        placements[axis] = ReplicateOnMesh()
        tensor = tensor.redistribute(placements=placements)
    return tensor.full_tensor()
