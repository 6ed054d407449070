"""What happens to gradients after the backward passes: ties between ranks, and the norm over all axes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from autopar.runtime.buckets import all_reduce_in_buckets
from autopar.runtime.marked_sum import MarkedSum
from autopar.runtime.mesh import RankMesh, own_group
from autopar.runtime.storage import StoredParameter, local_tensor


class TiedGradients:
    """Sums the gradients of parameters that several ranks of the pipeline axis hold.

    Making it is a collective of all ranks.

    Args:
        owners: canonical name -> positions on the pipeline axis, for every parameter that has more than one.
        mixed: of these, the parameters of which some owners' data ranks hold different pieces, others' the
            same.
    """

    def __init__(self, mesh: RankMesh, owners: Mapping[str, tuple[int, ...]], mixed: Collection[str]) -> None:
        here = mesh.here
        self._device = mesh.device
        self._mixed = frozenset(mixed)
        groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
        for holders in dict.fromkeys(owners.values()):
            lines = [
                [mesh.rank_at(holder, data, tensor) for holder in holders]
                for data in range(mesh.data)
                for tensor in range(mesh.tensor)
            ]
            group = own_group(lines, mesh.timeout)
            if group is not None:
                groups[holders] = group
        self._groups = {name: groups[found] for name, found in owners.items() if here.pipeline in found}

    def close(self) -> None:
        """Ends the groups."""
        for group in dict.fromkeys(self._groups.values()):
            dist.destroy_process_group(group)

    def num_owners(self, name: str) -> int:
        """Ranks of the pipeline axis that hold a parameter."""
        return dist.get_world_size(self._groups[name]) if name in self._groups else 1

    def reduce(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Sums over the owners; a collective of them."""
        for name, group in self._groups.items():
            parameter = parameters[name]
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradient = parameter.grad
            if name in self._mixed:
                gradient = _whole_on_data(gradient)
            local = local_tensor(gradient)
            summand = local.to(self._device)
            dist.all_reduce(summand, group=group)
            if summand is not local:  # offloaded
                local.copy_(summand)
            if isinstance(gradient, DTensor) and isinstance(parameter.grad, DTensor):
                parameter.grad = gradient.redistribute(placements=parameter.grad.placements)


def _whole_on_data(gradient: Tensor) -> Tensor:
    # Stages may differ in their ZeRO level; what they have in common is the gradient whole on the data axis.
    names = gradient.device_mesh.mesh_dim_names or () if isinstance(gradient, DTensor) else ()
    if not isinstance(gradient, DTensor) or "data" not in names:
        return gradient
    placements = list(gradient.placements)
    placements[names.index("data")] = Replicate()
    return gradient.redistribute(placements=placements)


class GradientNorm:
    """The norm of all gradients of the model, each element counted once.

    Args:
        stored: stored form of this rank's parameters.
        sharded: those of which the data ranks hold different pieces.
    """

    def __init__(
        self,
        mesh: RankMesh,
        stored: Mapping[str, StoredParameter],
        sharded: Collection[str],
        tied: TiedGradients,
    ) -> None:
        self._mesh = mesh
        self._num_copies = {
            name: tied.num_owners(name)
            * (mesh.num_replicas if name in sharded else mesh.data)
            * (mesh.tensor if form.stored_dim is None else 1)
            for name, form in stored.items()
        }

    def total(self, parameters: Mapping[str, nn.Parameter], call: str) -> Tensor:
        """2-norm over all parameters and ranks; a collective of all of them.

        Args:
            call: what the ranks do, with the step.
        """
        by_copies: dict[int, list[Tensor]] = {}
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                by_copies.setdefault(self._num_copies[name], []).append(local_tensor(parameter.grad))
        total = MarkedSum(self._mesh, call)
        squares = torch.zeros((), dtype=total.dtype, device=self._mesh.device)
        for copies, gradients in by_copies.items():
            squares += nn.utils.get_total_norm(gradients).to(squares) ** 2 / copies
        total.begin(squares)
        return total.wait().sqrt()


def add_up_late_gradients(parameters: Iterable[nn.Parameter], mesh: RankMesh) -> None:
    """Sums gradients over the tensor ranks, which have a summand each; a collective of them."""
    assert mesh.tensor_group is not None
    gradients = [local_tensor(p.grad) for p in parameters if p.grad is not None]
    on_device = [gradient.to(mesh.device) for gradient in gradients]
    all_reduce_in_buckets(on_device, mesh.tensor_group)
    for gradient, total in zip(gradients, on_device, strict=True):
        if total is not gradient:  # offloaded
            gradient.copy_(total)


def set_aside(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Takes away the gradients of earlier steps, which are synchronised already; for ``add_back``."""
    kept: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            kept[name] = parameter.grad
            parameter.grad = None
    return kept


def add_back(parameters: Mapping[str, nn.Parameter], earlier: Mapping[str, Tensor]) -> None:
    """Adds the gradients of earlier steps to those of this one."""
    for name, gradient in earlier.items():
        own = parameters[name].grad
        if own is not None:
            local_tensor(gradient).add_(local_tensor(own))
        parameters[name].grad = gradient


def scale_gradients(parameters: Sequence[nn.Parameter], factor: Tensor) -> None:
    """Multiplies every gradient, in place, by a scalar tensor."""
    for parameter in parameters:
        if parameter.grad is not None:
            gradient = local_tensor(parameter.grad)
            gradient.mul_(factor.to(gradient))
