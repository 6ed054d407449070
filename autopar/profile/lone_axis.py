"""A tensor axis with nobody else on it: what a rank computes and copies around its collectives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


class LoneAxis:
    """The first rank of ``size``; collectives take no time, and give finite numbers of the right shapes."""

    def __init__(self, size: int) -> None:
        self._size = size

    @property
    def rank(self) -> int:
        """Position on the axis."""
        return 0

    @property
    def size(self) -> int:
        """Ranks that programs are made for."""
        return self._size

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """A copy, as the real axis makes one."""
        return tensor.clone(memory_format=torch.contiguous_format)

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """Likewise."""
        return tensor.clone(memory_format=torch.contiguous_format)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """``(size, *shape)``, of zeros."""
        tensor.contiguous()
        return tensor.new_zeros((self._size, *tensor.shape))

    def begin_all_gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Likewise, when asked for."""
        return lambda: self.all_gather(tensor)

    def reduce_scatter(self, pieces: Tensor) -> Tensor:
        """The first piece."""
        return pieces.contiguous()[0].clone()

    def all_to_all(self, pieces: Tensor) -> Tensor:
        """A copy."""
        return pieces.clone(memory_format=torch.contiguous_format)

    def own_stream(self, device: torch.device) -> AbstractContextManager[None]:
        """Nothing: one rank shares its random numbers with nobody."""
        return nullcontext()
