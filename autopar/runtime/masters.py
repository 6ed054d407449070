"""Offloading of the optimiser: the parameters that it changes live in host memory, with its state.

A stage computes with parameters of its own on the device. Their gradients, once they are synchronised, go
down to the masters; before the next step the masters' values go up. The update itself runs on the host's
cores, in the user's optimiser, which sees ordinary parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from autopar.runtime.storage import local_tensor, rewrap


class HostMasters:
    """Masters of a rank's parameters.

    Args:
        computing: parameters on the device, by name.

    Attributes:
        parameters: masters of those that train, by name; the same pieces of the same tensors.
    """

    def __init__(self, computing: Iterable[tuple[str, nn.Parameter]]) -> None:
        self._computing = {name: parameter for name, parameter in computing if parameter.requires_grad}
        self._meshes: dict[DeviceMesh, DeviceMesh] = {}
        self.parameters: Mapping[str, nn.Parameter] = {
            name: nn.Parameter(self._to_host(parameter.detach()))
            for name, parameter in self._computing.items()
        }
        self._await_copies()

    def take_gradients(self) -> None:
        """Adds the device's gradients to those of the masters, and frees them."""
        taken: list[tuple[nn.Parameter, Tensor]] = []
        for name, parameter in self._computing.items():
            if parameter.grad is not None:
                taken.append((self.parameters[name], self._to_host(parameter.grad)))
                parameter.grad = None
        self._await_copies()
        for master, gradient in taken:
            if master.grad is None:
                master.grad = gradient
            else:
                local_tensor(master.grad).add_(local_tensor(gradient))

    def give_values(self) -> None:
        """Copies the masters' values to the device."""
        with torch.no_grad():
            for name, parameter in self._computing.items():
                source = local_tensor(self.parameters[name].detach())
                local_tensor(parameter.detach()).copy_(source, non_blocking=True)

    def _to_host(self, tensor: Tensor) -> Tensor:
        """A copy of this rank's piece in host memory, complete when the device has come to this point."""
        local = local_tensor(tensor)
        host = torch.empty_like(local, device="cpu", pin_memory=local.device.type != "cpu")
        host.copy_(local, non_blocking=True)
        mesh = self._on_host(tensor.device_mesh) if isinstance(tensor, DTensor) else None
        return rewrap(tensor, host, mesh)

    def _await_copies(self) -> None:
        for device in {local_tensor(parameter).device for parameter in self._computing.values()}:
            if device.type != "cpu":
                torch.get_device_module(device).current_stream(device).synchronize()

    def _on_host(self, mesh: DeviceMesh) -> DeviceMesh:
        """The same ranks as a mesh of CPUs; nobody communicates on it."""
        if mesh.device_type == "cpu":
            return mesh
        if mesh not in self._meshes:
            groups = mesh.get_all_groups()
            self._meshes[mesh] = DeviceMesh.from_group(
                groups if mesh.ndim > 1 else groups[0],
                "cpu",
                mesh=mesh.mesh if mesh.ndim > 1 else None,
                mesh_dim_names=mesh.mesh_dim_names,
            )
        return self._meshes[mesh]
