"""The edges between placements: autograd functions, each the transpose of what its backward does.

The lowered program calls them by the names that ``sharding.redistribution`` gives. ``dim`` and ``blocks``
describe a
shard: the dim is cut inside each of ``blocks`` equal parts.

| function         | from -> to           | forward        | backward       |
| ---------------- | -------------------- | -------------- | -------------- |
| copy_to          | replicate, replicate | none           | all-reduce     |
| split            | replicate, shard     | none           | all-gather     |
| to_partial       | replicate, partial   | none           | none           |
| all_reduce       | partial, replicate   | all-reduce     | none           |
| all_reduce_both  | partial, replicate   | all-reduce     | all-reduce     |
| reduce_scatter   | partial, shard       | reduce-scatter | all-gather     |
| gather           | shard, replicate     | all-gather     | none           |
| gather_partial   | shard, replicate     | all-gather     | reduce-scatter |
| pad_to_partial   | shard, partial       | none           | none           |
| all_to_all       | shard, shard         | all-to-all     | all-to-all     |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autopar.lower.axis import TensorAxis


def to_pieces(tensor: Tensor, dim: int, blocks: int, size: int) -> Tensor:
    """Cuts ``(..., n, ...)`` along ``dim`` into ``(size, ..., n / size, ...)``, one piece for each rank."""
    before, n, after = tensor.shape[:dim], tensor.shape[dim], tensor.shape[dim + 1 :]
    parts = tensor.reshape(*before, blocks, size, n // (blocks * size), *after).movedim(dim + 1, 0)
    return parts.reshape(size, *before, n // size, *after)


def from_pieces(pieces: Tensor, dim: int, blocks: int) -> Tensor:
    """The inverse of ``to_pieces``: ``(size, ..., n / size, ...)`` to ``(..., n, ...)``."""
    size, shape = pieces.shape[0], pieces.shape[1:]
    before, m, after = shape[:dim], shape[dim], shape[dim + 1 :]
    parts = pieces.reshape(size, *before, blocks, m // blocks, *after).movedim(0, dim + 1)
    return parts.reshape(*before, m * size, *after)


def own_piece(tensor: Tensor, dim: int, blocks: int, rank: int, size: int) -> Tensor:
    """Rank ``rank``'s piece of ``tensor``, in storage of its own."""
    before, n, after = tensor.shape[:dim], tensor.shape[dim], tensor.shape[dim + 1 :]
    parts = tensor.reshape(*before, blocks, size, n // (blocks * size), *after).select(dim + 1, rank)
    return parts.reshape(*before, n // size, *after).clone(memory_format=torch.contiguous_format)


def _pad(tensor: Tensor, dim: int, blocks: int, rank: int, size: int) -> Tensor:
    """The whole tensor, zero but for this rank's piece."""
    pieces = tensor.new_zeros((size, *tensor.shape))
    pieces[rank].copy_(tensor)
    return from_pieces(pieces, dim, blocks)


def _gather(axis: TensorAxis, tensor: Tensor, dim: int, blocks: int) -> Tensor:
    return from_pieces(axis.all_gather(tensor), dim, blocks)


def _reduce_scatter(axis: TensorAxis, tensor: Tensor, dim: int, blocks: int) -> Tensor:
    return axis.reduce_scatter(to_pieces(tensor, dim, blocks, axis.size))


def _all_to_all(axis: TensorAxis, tensor: Tensor, source: int, target: int) -> Tensor:
    return from_pieces(axis.all_to_all(to_pieces(tensor, target, 1, axis.size)), source, 1)


class _CopyTo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, axis: TensorAxis, tensor: Tensor) -> Tensor:
        ctx.axis = axis
        return tensor.view_as(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, ctx.axis.all_reduce(gradient)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, axis: TensorAxis, tensor: Tensor, dim: int, blocks: int) -> Tensor:
        ctx.axis, ctx.shard = axis, (dim, blocks)
        return own_piece(tensor, dim, blocks, axis.rank, axis.size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
        return None, _gather(ctx.axis, gradient, *ctx.shard), None, None


class _ToPartial(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, axis: TensorAxis, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor) if axis.rank == 0 else torch.zeros_like(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, axis: TensorAxis, tensor: Tensor, gradient_partial: bool) -> Tensor:
        ctx.axis, ctx.gradient_partial = axis, gradient_partial
        return axis.all_reduce(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        return None, ctx.axis.all_reduce(gradient) if ctx.gradient_partial else gradient, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, axis: TensorAxis, tensor: Tensor, dim: int, blocks: int) -> Tensor:
        ctx.axis, ctx.shard = axis, (dim, blocks)
        return _reduce_scatter(axis, tensor, dim, blocks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
        return None, _gather(ctx.axis, gradient, *ctx.shard), None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, axis: TensorAxis, tensor: Tensor, dim: int, blocks: int, gradient_partial: bool
    ) -> Tensor:
        ctx.axis, ctx.shard, ctx.gradient_partial = axis, (dim, blocks), gradient_partial
        return _gather(axis, tensor, dim, blocks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None, None]:
        axis = ctx.axis
        if ctx.gradient_partial:
            piece = _reduce_scatter(axis, gradient, *ctx.shard)
        else:
            dim, blocks = ctx.shard
            piece = own_piece(gradient, dim, blocks, axis.rank, axis.size)
        return None, piece, None, None, None


class _PadToPartial(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, axis: TensorAxis, tensor: Tensor, dim: int, blocks: int) -> Tensor:
        ctx.axis, ctx.shard = axis, (dim, blocks)
        return _pad(tensor, dim, blocks, axis.rank, axis.size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
        dim, blocks = ctx.shard
        return None, own_piece(gradient, dim, blocks, ctx.axis.rank, ctx.axis.size), None, None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, axis: TensorAxis, tensor: Tensor, source: int, target: int) -> Tensor:
        ctx.axis, ctx.dims = axis, (source, target)
        return _all_to_all(axis, tensor, source, target)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
        source, target = ctx.dims
        return None, _all_to_all(ctx.axis, gradient, target, source), None, None


def copy_to(axis: TensorAxis, tensor: Tensor) -> Tensor:
    """A replicated value for a consumer that returns a summand of its gradient."""
    return _CopyTo.apply(axis, tensor)  # type: ignore[no-any-return, no-untyped-call]


def split(axis: TensorAxis, tensor: Tensor, dim: int, blocks: int) -> Tensor:
    """This rank's piece of a replicated value."""
    return _Split.apply(axis, tensor, dim, blocks)  # type: ignore[no-any-return, no-untyped-call]


def to_partial(axis: TensorAxis, tensor: Tensor) -> Tensor:
    """A replicated value as summands: the value on rank 0, zeros elsewhere."""
    return _ToPartial.apply(axis, tensor)  # type: ignore[no-any-return, no-untyped-call]


def all_reduce(axis: TensorAxis, tensor: Tensor) -> Tensor:
    """Sum of the summands."""
    return _AllReduce.apply(axis, tensor, False)  # type: ignore[no-any-return, no-untyped-call]


def all_reduce_both(axis: TensorAxis, tensor: Tensor) -> Tensor:
    """Sum of the summands, for a consumer that returns a summand of the gradient."""
    return _AllReduce.apply(axis, tensor, True)  # type: ignore[no-any-return, no-untyped-call]


def reduce_scatter(axis: TensorAxis, tensor: Tensor, dim: int, blocks: int) -> Tensor:
    """This rank's piece of the sum of the summands."""
    return _ReduceScatter.apply(axis, tensor, dim, blocks)  # type: ignore[no-any-return, no-untyped-call]


def gather(axis: TensorAxis, tensor: Tensor, dim: int, blocks: int) -> Tensor:
    """The whole of a sharded value."""
    return _Gather.apply(axis, tensor, dim, blocks, False)  # type: ignore[no-any-return, no-untyped-call]


def gather_partial(axis: TensorAxis, tensor: Tensor, dim: int, blocks: int) -> Tensor:
    """The whole of a sharded value, for a consumer that returns a summand of the gradient."""
    return _Gather.apply(axis, tensor, dim, blocks, True)  # type: ignore[no-any-return, no-untyped-call]


def pad_to_partial(axis: TensorAxis, tensor: Tensor, dim: int, blocks: int) -> Tensor:
    """A sharded value as summands: each rank's piece in its place, zeros around it."""
    return _PadToPartial.apply(axis, tensor, dim, blocks)  # type: ignore[no-any-return, no-untyped-call]


def all_to_all(axis: TensorAxis, tensor: Tensor, source: int, target: int) -> Tensor:
    """From shards of dim ``source`` to shards of dim ``target``."""
    return _AllToAll.apply(axis, tensor, source, target)  # type: ignore[no-any-return, no-untyped-call]
