"""Whether the backward that a user wrote for a function is what autograd derives from its forward.

Then nothing is lost where a graph keeps the forward alone. It is tried on a few random numbers, in a thread
of its own: the modes that trace a model hold for the thread that traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

_TOLERANCE = 1e-5  # constants in formulas are written with six digits and more
_SMALL = 8


def derives_itself(kind: type[Function], args: Sequence[Any], apply: Any) -> bool:
    """Whether both ways lead to the same gradients; false where that cannot be tried.

    Args:
        kind: the function.
        args: which it is called with; of tensors, only shapes and dtypes are looked at.
        apply: what ``kind.apply`` is without tracing.
    """
    leaves, form = tree_flatten(list(args))
    sizes: dict[int | str, int] = {}
    wanted = [
        _Wanted(_small_shape(leaf, sizes), leaf.dtype, leaf.requires_grad)
        if isinstance(leaf, Tensor)
        else leaf
        for leaf in leaves
    ]

    def try_it() -> bool:
        draw = torch.Generator().manual_seed(0)
        values = [one.drawn(draw) if isinstance(one, _Wanted) else one for one in wanted]
        given = tree_unflatten(values, form)
        inputs = [value for value in values if isinstance(value, Tensor) and value.requires_grad]
        with torch.enable_grad():
            own = _gradients(apply(kind, *given), inputs)
            derived = _gradients(_forward(kind, given), inputs)
        return all(
            torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE * float(one.abs().max()))
            for one, other in zip(own, derived, strict=True)
        )

    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(try_it).result()
        except Exception:
            return False


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A tensor to try with."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    wants_gradient: bool

    def drawn(self, draw: torch.Generator) -> Tensor:
        """Its values."""
        if not self.dtype.is_floating_point:
            return torch.zeros(self.shape, dtype=self.dtype)
        values = torch.randn(self.shape, dtype=torch.float64, generator=draw)
        return values.requires_grad_(self.wants_gradient)


def _small_shape(tensor: Tensor, sizes: dict[int | str, int]) -> tuple[int, ...]:
    """A shape whose dims are as equal to each other as those of the tensor, and small.

    Args:
        sizes: chosen so far; those that are open while tracing by their names.
    """
    shape = []
    for size in tensor.shape:
        key = size if isinstance(size, int) else str(size)
        small = key if isinstance(key, int) and key <= _SMALL else _SMALL + 1 + len(sizes)
        shape.append(sizes.setdefault(key, small))
    return tuple(shape)


def _forward(kind: Any, args: Sequence[Any]) -> Any:
    """What the forward computes, as autograd sees it."""
    if kind.setup_context is not Function.setup_context:
        return kind.forward(*args)
    return kind.forward(_Context(args), *args)


def _gradients(outputs: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Of the sum of all outputs, each weighed in another way; zero where an input does not matter."""
    total: Tensor | None = None
    for output in tree_leaves(outputs):
        if isinstance(output, Tensor) and output.is_floating_point() and output.requires_grad:
            weights = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).reshape(output.shape)
            weighed = (output * weights).sum()
            total = weighed if total is None else total + weighed
    if total is None:
        return [torch.zeros_like(one) for one in inputs]
    found = torch.autograd.grad(total, inputs, allow_unused=True)
    return [torch.zeros_like(one) if g is None else g for one, g in zip(inputs, found, strict=True)]


class _Context:
    """What a forward is handed to leave things for its backward; nobody reads them."""

    def __init__(self, args: Sequence[Any]) -> None:
        self.needs_input_grad = tuple(isinstance(arg, Tensor) and arg.requires_grad for arg in args)

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Takes what the backward would read."""

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Takes what has no gradient."""

    def set_materialize_grads(self, value: bool) -> None:
        """Takes whether missing gradients are zeros."""
