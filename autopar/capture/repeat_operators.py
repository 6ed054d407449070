"""Operators that mark, in a traced graph, where a module's call begins and ends and where it is repeated.

They exist between tracing and :func:`autopar.capture.expand.expand_repeats`, and compute nothing. A call's
operators lie between its ``enter`` and its ``leave``; ``repeat`` stands for the same operators on other
inputs and parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

NONE = -1
"""In the place of the number of a layer whose parameters are withheld: none are."""


@torch.library.custom_op(
    "autopar::enter", mutates_args=(), schema="(Tensor[] inputs, Tensor[] own, int call) -> ()"
)
def enter(inputs: Sequence[Tensor], own: Sequence[Tensor], call: int) -> None:
    """The call begins: its tensor arguments, and the parameters and buffers of the module."""


@torch.library.custom_op(
    "autopar::leave", mutates_args=(), schema="(Tensor[] outputs, Tensor[] inputs, int call) -> ()"
)
def leave(outputs: Sequence[Tensor], inputs: Sequence[Tensor], call: int) -> None:
    """The call ends: what it made, and its tensor arguments once more."""


@torch.library.custom_op(
    "autopar::repeat",
    mutates_args=(),
    schema="(Tensor[] inputs, Tensor[] own, Tensor[] like, int withheld, int call) -> Tensor[]",
)
def repeat(
    inputs: Sequence[Tensor], own: Sequence[Tensor], like: Sequence[Tensor], withheld: int, call: int
) -> list[Tensor]:
    """The operators of ``call`` on other tensors; ``like`` are the results of the first time.

    Of a layer whose parameters are withheld, its number stands for them; else ``withheld`` is ``NONE``.
    """
    return _shaped_like(inputs, own, like, withheld, call)


def _shaped_like(
    inputs: Sequence[Tensor], own: Sequence[Tensor], like: Sequence[Tensor], withheld: int, call: int
) -> list[Tensor]:
    return [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in like]


def _nothing(*_: Any) -> None:
    return None


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    like: Sequence[Tensor] = inputs[2]
    constant = [made for made, first in zip(output, like, strict=True) if not first.requires_grad]
    ctx.mark_non_differentiable(*constant)


enter.register_fake(_nothing)
leave.register_fake(_nothing)
repeat.register_fake(_shaped_like)
# So that those results require gradients that did so the first time; it never runs backward.
repeat.register_autograd(_nothing, setup_context=_set_up)

ENTER = torch.ops.autopar.enter.default
LEAVE = torch.ops.autopar.leave.default
REPEAT = torch.ops.autopar.repeat.default
for _marker in (ENTER, LEAVE):  # nothing reads their results, but they must stay
    fx.node.has_side_effect(_marker)
