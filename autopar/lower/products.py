"""Products with weights that keep a shard of their input, or leave the weight's gradient for later.

Each stands for one operator of a program; with neither a queue nor a kept shard it is that operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from autopar.lower.kept_shards import KeptShard
from autopar.lower.weight_gradients import Later, WeightGradients, later_gradient


@dataclass(frozen=True, slots=True)
class _Way:
    """How a product runs.

    Attributes:
        out_first: ``x @ weight.T + bias`` for weight ``(out, in)``; otherwise ``x @ weight`` for weight
            ``(in, out)``.
        later: where the gradient of the weight goes, if it is not made at once.
        kept: gathers the input again, if only its shard is kept.
    """

    out_first: bool
    later: Later | None
    kept: KeptShard | None

    @property
    def is_plain(self) -> bool:
        """Whether it is the operator itself."""
        return self.later is None and self.kept is None


class _Product(torch.autograd.Function):
    """A product of x ``(..., in)`` with a weight, and a bias where ``out_first``."""

    @staticmethod
    def forward(ctx: Any, way: _Way, anchor: Tensor | None, shard: Tensor | None, *operands: Any) -> Tensor:
        x, weight, bias = operands
        ctx.way = way
        if way.kept is not None and (way.later is not None or ctx.needs_input_grad[4]):
            way.kept.add_reader()
        ctx.save_for_backward(x if shard is None else shard, weight)
        result: Tensor = F.linear(x, weight, bias) if way.out_first else x @ weight
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (held, weight), way = ctx.saved_tensors, ctx.way
        rows = gradient.reshape(-1, gradient.shape[-1])
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[3:]

        def of_weight(whole: Callable[[], Tensor]) -> Tensor:
            x = whole()
            columns = x.reshape(-1, x.shape[-1])
            found: Tensor = rows.t() @ columns if way.out_first else columns.t() @ rows
            return found

        def begin() -> Callable[[], Tensor]:
            return (lambda: held) if way.kept is None else way.kept.begin(held)

        if way.later is not None:
            way.later.put(lambda: of_weight(begin()))
        whole = begin() if needs_weight else None
        # The product that makes this gradient runs beside the gathering.
        of_x = gradient @ (weight if way.out_first else weight.t()) if needs_x else None
        found = None if whole is None else of_weight(whole)
        return None, None, None, of_x, found, rows.sum(0) if needs_bias else None


class Held(TypedDict, total=False):
    """How a product keeps less than its input.

    Attributes:
        kept: gathers ``shard`` again.
        shard: is kept instead of the input.
    """

    kept: KeptShard | None
    shard: Tensor | None


def linear(
    queue: WeightGradients | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    **held: Unpack[Held],
) -> Tensor:
    """``aten.linear``.

    Args:
        queue: takes the gradient of the weight.
    """
    way = _Way(True, later_gradient(queue, weight), held.get("kept"))
    return F.linear(x, weight, bias) if way.is_plain else _apply(way, x, weight, bias, held)


def matmul(queue: WeightGradients | None, x: Tensor, weight: Tensor, **held: Unpack[Held]) -> Tensor:
    """``aten.matmul`` or ``aten.mm`` with a weight ``(in, out)``; arguments as those of ``linear``."""
    way = _Way(False, later_gradient(queue, weight), held.get("kept"))
    return x @ weight if way.is_plain else _apply(way, x, weight, None, held)


def addmm(
    queue: WeightGradients | None, bias: Tensor, x: Tensor, weight: Tensor, **held: Unpack[Held]
) -> Tensor:
    """``aten.addmm``; arguments as those of ``linear``."""
    way = _Way(False, later_gradient(queue, weight), held.get("kept"))
    return torch.addmm(bias, x, weight) if way.is_plain else _apply(way, x, weight, None, held) + bias


def _apply(way: _Way, x: Tensor, weight: Tensor, bias: Tensor | None, held: Held) -> Tensor:
    anchor = None if way.later is None else way.later.queue.anchor
    # A weight whose gradient comes later has none here.
    given = weight if way.later is None else weight.detach()
    shard = held.get("shard")
    kept = None if shard is None else shard.detach()
    return _Product.apply(way, anchor, kept, x, given, bias)  # type: ignore[no-any-return, no-untyped-call]
