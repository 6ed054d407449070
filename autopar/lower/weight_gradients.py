"""The queue of weights' gradients that are left for later; convolutions and look-ups that leave theirs there.

Their backward passes compute the gradient of the input at once. Each stands for one operator of a program;
without a queue it is that operator. Products are in ``lower.products``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge, get_gradient_edge

from autopar.lower import local_operators
from autopar.lower.axis import TensorAxis

_aten = torch.ops.aten


class WeightGradients:
    """The second half of one stage's backward pass for one micro-batch, waiting to be run."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[GradientEdge, Callable[[], Tensor]]] = deque()
        # A function whose other inputs need no gradient (token ids, images) still has a backward pass.
        self.anchor = torch.empty(0, requires_grad=True)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, weight: GradientEdge, gradient: Callable[[], Tensor]) -> None:
        """Leaves a gradient for later."""
        self._waiting.append((weight, gradient))

    def run(self) -> None:
        """Computes every gradient and adds it to its parameter; frees what it needed one by one."""
        while self._waiting:
            weight, gradient = self._waiting.popleft()
            torch.autograd.backward(weight, gradient())


@dataclass(frozen=True, slots=True)
class Later:
    """Where the gradient of one weight goes: to the queue, from there on to ``edge``."""

    queue: WeightGradients
    edge: GradientEdge

    def put(self, gradient: Callable[[], Tensor]) -> None:
        """Leaves the gradient for later."""
        self.queue.put(self.edge, gradient)


def later_gradient(queue: WeightGradients | None, weight: Tensor) -> Later | None:
    """Where the gradient of ``weight`` goes; None where it is made at once, or not at all."""
    if queue is None or not torch.is_grad_enabled() or not weight.requires_grad:
        return None
    return Later(queue, get_gradient_edge(weight))


class _Convolution(torch.autograd.Function):
    """A convolution of x ``(batch, in, ...)`` with weight ``(out, in / groups, ...)``."""

    @staticmethod
    def forward(ctx: Any, later: Later, anchor: Tensor, options: Any, *operands: Any) -> Tensor:
        x, weight, bias = operands
        ctx.later, ctx.options = later, options
        ctx.save_for_backward(x, weight)
        stride, padding, dilation, groups = options
        none = (0,) * len(stride)
        result: Tensor = _aten.convolution(x, weight, bias, stride, padding, dilation, False, none, groups)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.options
        sizes = [weight.shape[0]]

        def part(weight: Tensor, of_x: bool, of_weight: bool, of_bias: bool) -> list[Tensor | None]:
            none = [0] * len(stride)
            wanted = [of_x, of_weight, of_bias]
            found = _aten.convolution_backward(
                gradient, x, weight, sizes, stride, padding, dilation, False, none, groups, wanted
            )
            return list(found)

        # The weight's own gradient does not depend on its values, which FSDP may have freed by then.
        ctx.later.put(lambda: part(torch.empty_like(weight), False, True, False)[1])
        needs_x, needs_bias = ctx.needs_input_grad[3], ctx.needs_input_grad[5]
        of_x, _, of_bias = part(weight, needs_x, False, needs_bias) if needs_x or needs_bias else (None,) * 3
        return None, None, None, of_x, None, of_bias


class _Embedding(torch.autograd.Function):
    """Rows of weight ``(rows, hidden)`` by index."""

    @staticmethod
    def forward(
        ctx: Any, later: Later, anchor: Tensor, weight: Tensor, indices: Tensor, padding: int
    ) -> Tensor:
        ctx.later, ctx.num_rows, ctx.padding = later, weight.shape[0], padding
        ctx.save_for_backward(indices)
        result: Tensor = _aten.embedding(weight, indices, padding)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        (indices,) = ctx.saved_tensors
        num_rows, padding = ctx.num_rows, ctx.padding
        ctx.later.put(lambda: _aten.embedding_dense_backward(gradient, indices, num_rows, padding, False))
        return None, None, None, None, None


def convolution(
    queue: WeightGradients | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """``aten.conv1d``, ``conv2d`` or ``conv3d``."""
    num_dims = weight.dim() - 2

    def each(value: Any) -> tuple[int, ...]:
        values = (value,) if isinstance(value, int) else tuple(value)
        return values * num_dims if len(values) == 1 else values

    later = later_gradient(queue, weight)
    options = (each(stride), each(padding), each(dilation), groups)
    if later is None:
        plain: Tensor = _aten.convolution(x, weight, bias, *options[:3], False, (0,) * num_dims, groups)
        return plain
    return _Convolution.apply(later, later.queue.anchor, options, x, weight.detach(), bias)  # type: ignore[no-any-return, no-untyped-call]


def embedding(
    queue: WeightGradients | None, weight: Tensor, indices: Tensor, padding_idx: int = -1, *_: bool
) -> Tensor:
    """``aten.embedding`` without its rarer options."""
    later = later_gradient(queue, weight)
    if later is None:
        plain: Tensor = _aten.embedding(weight, indices, padding_idx)
        return plain
    return _Embedding.apply(later, later.queue.anchor, weight.detach(), indices, padding_idx)  # type: ignore[no-any-return, no-untyped-call]


def embedding_vocab(
    queue: WeightGradients | None,
    axis: TensorAxis,
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    *_: bool,
) -> Tensor:
    """``local_operators.embedding_vocab`` without its rarer options."""

    def look_up(rows: Tensor, weight: Tensor, padding_idx: int | None, sparse: bool) -> Tensor:
        return embedding(queue, weight, rows, -1 if padding_idx is None else padding_idx)

    return local_operators.embedding_vocab(axis, weight, indices, padding_idx, look_up=look_up)
