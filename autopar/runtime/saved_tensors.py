"""Offloading of activations: what a block saves for its backward pass waits in host memory.

What autograd saves is copied down while the block computes and comes up again, all of a block's at its first
use in the backward pass; that of the block before is asked for at the same time. On a GPU both ways run on
streams of their own, from and to pinned memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable, Iterator, Sequence
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
        self._copier = _StreamCopier(device) if device.type == "cuda" else _Copier(device)
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


class _SavedExtent:
    """Elements in host memory, and on the device again once they were asked for."""

    def __init__(self, block: _SavedBlock, elements: Tensor) -> None:
        self.block = block
        self.host = block.copier.down(elements)
        self.on_device: _Copy | None = None

    def bring_up(self) -> None:
        """Begins to copy to the device."""
        if self.on_device is None:
            self.on_device = self.block.copier.up(self.host)


@dataclass(frozen=True)
class _SavedTensor:
    """A saved tensor: the view of ``shape`` and ``stride`` of some elements, expanded to ``size``."""

    extent: _SavedExtent
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    size: tuple[int, ...]

    def load(self) -> Tensor:
        """The tensor on the device."""
        self.extent.block.bring_up()
        found = self.extent.on_device
        assert found is not None
        self.extent.block.copier.await_up(found)
        return found.data.as_strided(self.shape, self.stride).expand(self.size)


class _SavedBlock:
    """What one block saved in one micro-batch."""

    def __init__(self, copier: _Copier, kept: Iterable[Tensor], previous: _SavedBlock | None) -> None:
        self.copier = copier
        self._kept = {tensor.untyped_storage().data_ptr() for tensor in kept}
        self._previous = previous
        # Weak: each extent is let go when autograd is done with it.
        self._extents: list[weakref.ref[_SavedExtent]] = []
        self._by_key: dict[Hashable, _SavedExtent] = {}
        # Tensors are held until the block has run, so that no two of them have the same address.
        self._held: list[Tensor] = []

    def pack(self, tensor: Tensor) -> _SavedTensor | Tensor:
        """What autograd keeps instead of ``tensor``."""
        if tensor.device.type != self.copier.device.type or tensor.layout != torch.strided:
            return tensor
        address = tensor.untyped_storage().data_ptr()
        if not tensor.numel() or address in self._kept:
            return tensor
        saved = tensor.detach()
        for dim, step in enumerate(saved.stride()):
            if step == 0:
                saved = saved.narrow(dim, 0, 1)
        shape, stride = tuple(saved.shape), saved.stride()
        # Views of the same elements travel once: of a dense tensor, all that cover the same range.
        place: tuple[Hashable, ...] = (saved.numel(),)
        if is_dense(shape, stride):
            elements = saved.as_strided((saved.numel(),), (1,))
        else:
            place, elements = (shape, stride), saved.contiguous()
            stride = elements.stride()
        # What was written to in between is another value.
        key = (address, version(tensor), saved.storage_offset(), saved.dtype, *place)
        if key not in self._by_key:
            self._held += [saved, elements]
            extent = self._by_key[key] = _SavedExtent(self, elements)
            self._extents.append(weakref.ref(extent))
        return _SavedTensor(self._by_key[key], shape, stride, tuple(tensor.shape))

    def end_forward(self) -> None:
        """Lets the device's copies go."""
        self._by_key.clear()
        self._held.clear()

    def bring_up(self) -> None:
        """Copies everything to the device that is not there, and asks for what the block before saved."""
        self._copy_up()
        if self._previous is not None:
            self._previous._copy_up()
            self._previous = None

    def _copy_up(self) -> None:
        for reference in self._extents:
            extent = reference()
            if extent is not None:
                extent.bring_up()
        self._extents.clear()


def is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the elements of a tensor fill a range of memory without gaps or overlap, in whatever order."""
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size > 1 and step != expected:
            return False
        expected *= size
    return True


@dataclass(frozen=True)
class _Copy:
    """Elements in host memory or on the device, there once the event has happened."""

    data: Tensor
    event: torch.cuda.Event | None = None


class _Copier:
    """Copies at once; for devices that share the host's memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

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
        super().__init__(device)
        self._down = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._up = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def down(self, saved: Tensor) -> _Copy:
        """Begins a copy in host memory."""
        host = torch.empty(saved.shape, dtype=saved.dtype, pin_memory=True)
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._down):
            host.copy_(saved, non_blocking=True)
        saved.record_stream(self._down)
        return _Copy(host, self._down.record_event())

    def up(self, host: _Copy) -> _Copy:
        """Begins a copy on the device."""
        on_device = torch.empty(host.data.shape, dtype=host.data.dtype, device=self.device)
        self._up.wait_stream(torch.cuda.current_stream(self.device))
        assert host.event is not None
        self._up.wait_event(host.event)
        with torch.cuda.stream(self._up):
            on_device.copy_(host.data, non_blocking=True)
        on_device.record_stream(self._up)
        return _Copy(on_device, self._up.record_event())

    def await_up(self, on_device: _Copy) -> None:
        """Lets later work on the device wait for the copy."""
        assert on_device.event is not None
        torch.cuda.current_stream(self.device).wait_event(on_device.event)


def _unpack(saved: _SavedTensor | Tensor) -> Tensor:
    return saved.load() if isinstance(saved, _SavedTensor) else saved
