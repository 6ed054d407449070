"""Offloading of activations: what a block saves for its backward pass waits in host memory.

The storages that autograd saves are copied down while the block computes and come up again, all of a block's
at its first use in the backward pass; those of the block before are asked for at the same time. On a GPU both
ways run on streams of their own, from and to pinned memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from autopar.runtime.views import version


class OffloadedActivations:
    """Saved tensors of one stage.

    Args:
        device: where the stage computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._copier = _StreamCopier(device) if device.type == "cuda" else _Copier()
        self._last: _SavedBlock | None = None

    def begin(self) -> None:
        """Called before the forward pass of each micro-batch."""
        self._last = None

    @contextmanager
    def of_block(self, kept: Iterable[Tensor]) -> Iterator[None]:
        """Around the forward pass of a block; what autograd saves inside goes to host memory.

        Args:
            kept: tensors that stay, because they live on anyway: parameters, buffers, batch entries.
        """
        block = self._last = _SavedBlock(self._copier, kept, self._last)
        with torch.autograd.graph.saved_tensors_hooks(block.pack, _unpack):
            yield
        block.end_forward()


class _SavedStorage:
    """One storage in host memory, and on the device again once it was asked for."""

    def __init__(self, block: _SavedBlock, saved: Tensor) -> None:
        self.block = block
        self.host = block.copier.down(saved)
        self.on_device: _Copy | None = None

    def bring_up(self) -> None:
        """Begins to copy to the device."""
        if self.on_device is None:
            self.on_device = self.block.copier.up(self.host)


class _SavedTensor:
    """A view of a saved storage."""

    def __init__(self, storage: _SavedStorage, tensor: Tensor) -> None:
        self.storage = storage
        self.device, self.dtype = tensor.device, tensor.dtype
        self.place = tensor.storage_offset(), tensor.size(), tensor.stride()

    def load(self) -> Tensor:
        """The tensor on the device."""
        self.storage.block.bring_up()
        found = self.storage.on_device
        assert found is not None
        self.storage.block.copier.await_up(found)
        empty = torch.empty(0, dtype=self.dtype, device=self.device)
        return empty.set_(found.data.untyped_storage(), *self.place)


class _SavedBlock:
    """What one block saved in one micro-batch."""

    def __init__(self, copier: _Copier, kept: Iterable[Tensor], previous: _SavedBlock | None) -> None:
        self.copier = copier
        self._kept = {_address(tensor) for tensor in kept}
        self._previous = previous
        # Weak: each storage is let go when autograd is done with it.
        self._storages: list[weakref.ref[_SavedStorage]] = []
        self._by_address: dict[tuple[int, int], _SavedStorage] = {}
        # Tensors are held until the block has run, so that no two storages of it have the same address.
        self._held: list[Tensor] = []

    def pack(self, tensor: Tensor) -> _SavedTensor | Tensor:
        """What autograd keeps instead of ``tensor``."""
        if not tensor.numel() or _address(tensor) in self._kept:
            return tensor
        key = _address(tensor), version(tensor)  # what is written to in between is another value
        if key not in self._by_address:
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
            self._held.append(whole)
            storage = self._by_address[key] = _SavedStorage(self, whole)
            self._storages.append(weakref.ref(storage))
        return _SavedTensor(self._by_address[key], tensor)

    def end_forward(self) -> None:
        """Lets the device's copies go."""
        self._by_address.clear()
        self._held.clear()

    def bring_up(self) -> None:
        """Copies everything to the device that is not there, and asks for what the block before saved."""
        self._copy_up()
        if self._previous is not None:
            self._previous._copy_up()
            self._previous = None

    def _copy_up(self) -> None:
        for reference in self._storages:
            storage = reference()
            if storage is not None:
                storage.bring_up()
        self._storages.clear()


@dataclass(frozen=True)
class _Copy:
    """Bytes in host memory or on the device, there once the event has happened."""

    data: Tensor
    event: torch.cuda.Event | None = None


class _Copier:
    """Copies at once; for devices that share the host's memory."""

    def down(self, saved: Tensor) -> _Copy:
        """Begins a copy in host memory."""
        return _Copy(saved.clone())

    def up(self, host: _Copy) -> _Copy:
        """Begins a copy on the device."""
        return _Copy(host.data.clone())

    def await_up(self, on_device: _Copy) -> None:
        """Lets later work on the device wait for the copy."""


class _StreamCopier(_Copier):
    """Copies through pinned memory on two streams, one a direction, beside the computation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._down = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._up = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def down(self, saved: Tensor) -> _Copy:
        """Begins a copy in host memory."""
        host = torch.empty(saved.shape, dtype=saved.dtype, pin_memory=True)
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._down):
            host.copy_(saved, non_blocking=True)
        saved.record_stream(self._down)
        return _Copy(host, self._down.record_event())

    def up(self, host: _Copy) -> _Copy:
        """Begins a copy on the device."""
        on_device = torch.empty(host.data.shape, dtype=host.data.dtype, device=self._device)
        self._up.wait_stream(torch.cuda.current_stream(self._device))
        assert host.event is not None
        self._up.wait_event(host.event)
        with torch.cuda.stream(self._up):
            on_device.copy_(host.data, non_blocking=True)
        on_device.record_stream(self._up)
        return _Copy(on_device, self._up.record_event())

    def await_up(self, on_device: _Copy) -> None:
        """Lets later work on the device wait for the copy."""
        assert on_device.event is not None
        torch.cuda.current_stream(self._device).wait_event(on_device.event)


def _unpack(saved: _SavedTensor | Tensor) -> Tensor:
    return saved.load() if isinstance(saved, _SavedTensor) else saved


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
