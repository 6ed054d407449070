"""The tensor axis as a lowered program sees it: a rank, a size, five collectives; no global process group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 renames two collectives and warns at the old names.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


class TensorAxis(Protocol):
    """One rank's view of the tensor axis; the first argument of every lowered program.

    Every collective returns new storage and leaves its argument as it is. ``pieces`` are stacked along a
    new dim 0 of ``size``, one for each rank.
    """

    @property
    def rank(self) -> int:
        """Position on the axis."""

    @property
    def size(self) -> int:
        """Number of ranks on the axis."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks."""

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """Maximum over the ranks."""

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Tensors of all ranks, ``(size, *shape)``."""

    def begin_all_gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begins an all-gather that runs beside what follows; call what it returns to wait for the result."""

    def reduce_scatter(self, pieces: Tensor) -> Tensor:
        """This rank's piece, ``shape``, of the sum over the ranks of ``(size, *shape)``."""

    def all_to_all(self, pieces: Tensor) -> Tensor:
        """Piece ``rank`` of every rank's ``(size, *shape)``, stacked in the order of the ranks."""

    def own_stream(self, device: torch.device) -> AbstractContextManager[None]:
        """Random numbers drawn inside differ between ranks; outside, all ranks stay in step."""


class ProcessGroupAxis:
    """The tensor axis over a torch.distributed process group, gloo or NCCL."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._rank = dist.get_rank(group)
        self._size = dist.get_world_size(group)

    @property
    def rank(self) -> int:
        """Position in the group."""
        return self._rank

    @property
    def size(self) -> int:
        """Ranks in the group."""
        return self._size

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks."""
        result = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result, group=self._group)
        return result

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """Maximum over the ranks."""
        result = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result, dist.ReduceOp.MAX, group=self._group)
        return result

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Tensors of all ranks, stacked."""
        return self.begin_all_gather(tensor)()

    def begin_all_gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Tensors of all ranks, stacked, when they have arrived."""
        result, own = tensor.new_empty((self._size, *tensor.shape)), tensor.contiguous()
        work = _all_gather(result.view(-1), own.view(-1), group=self._group, async_op=True)

        def wait() -> Tensor:
            nonlocal own
            work.wait()
            own = result  # what was sent may go
            return result

        return wait

    def reduce_scatter(self, pieces: Tensor) -> Tensor:
        """This rank's piece of the sum."""
        result = pieces.new_empty(pieces.shape[1:])
        _reduce_scatter(result.view(-1), pieces.contiguous().view(-1), group=self._group)
        return result

    def all_to_all(self, pieces: Tensor) -> Tensor:
        """One piece from every rank, stacked."""
        result = torch.empty_like(pieces, memory_format=torch.contiguous_format)
        dist.all_to_all_single(result, pieces.contiguous(), group=self._group)
        return result

    def own_stream(self, device: torch.device) -> AbstractContextManager[None]:
        """See ``own_stream``."""
        return own_stream(self._rank, device)


class FakeAxis:
    """Shapes only: collectives return uninitialised storage of the right size. For fake and meta tensors."""

    def __init__(self, size: int, rank: int = 0) -> None:
        self._size = size
        self._rank = rank

    @property
    def rank(self) -> int:
        """The rank that this stands for."""
        return self._rank

    @property
    def size(self) -> int:
        """Number of ranks on the axis."""
        return self._size

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """A tensor of the same shape."""
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """A tensor of the same shape."""
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """A tensor ``(size, *shape)``."""
        return tensor.new_empty((self._size, *tensor.shape))

    def begin_all_gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        """A tensor ``(size, *shape)``."""
        return lambda: self.all_gather(tensor)

    def reduce_scatter(self, pieces: Tensor) -> Tensor:
        """A tensor of the shape of one piece."""
        return pieces.new_empty(pieces.shape[1:])

    def all_to_all(self, pieces: Tensor) -> Tensor:
        """A tensor of the same shape."""
        return torch.empty_like(pieces, memory_format=torch.contiguous_format)

    def own_stream(self, device: torch.device) -> AbstractContextManager[None]:
        """Nothing: shapes do not depend on random numbers."""
        return nullcontext()


@contextmanager
def own_stream(rank: int, device: torch.device) -> Iterator[None]:
    """Inside, random numbers of this rank's own; outside, the generators that all ranks share go on in step.

    The seed is drawn from the shared CPU generator and the rank added to it, so whoever restores that
    generator (recomputation does) repeats the same numbers.
    """
    seed = int(torch.randint(0, 2**62, ())) + 1 + rank
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    with torch.random.fork_rng(devices=[device], device_type=device.type):
        torch.get_device_module(device).manual_seed(seed)
        yield
