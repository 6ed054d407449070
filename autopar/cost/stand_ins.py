"""Stand-ins that keep for the backward pass what an operator's GPU kernel keeps; for runs on fake tensors
only.

A fake CPU tensor would take the CPU's path: attention by separate products, dropout with a floating mask, an
LSTM step by step. Each stand-in has the arguments of the aten operator that it replaces, and returns
``NotImplemented`` where the operator's own path keeps the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

# Tensors of the hidden size that cuDNN's reserve space holds per step, layer and direction: gates and states.
# Estimate: four (LSTM) or three (GRU) gates, and the states before and after.
_RESERVED = {"lstm": 6, "gru": 5}


class _Attention(torch.autograd.Function):
    """Fused attention keeps queries, keys, values, result and one fp32 number a row (FlashAttention,
    2205.14135)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        *batch, heads, seq, _ = query.shape
        # The kernel lays the result out as (batch, seq, heads, dim), so that merging the heads is a view.
        result = query.new_empty((*batch, seq, heads, value.shape[-1])).transpose(-3, -2)
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, result, rows, *([] if mask is None else [mask]))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise AssertionError(_NOT_DIFFERENTIATED)


class _Dropout(torch.autograd.Function):
    """Dropout on a GPU keeps a mask of one byte an element."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.save_for_backward(torch.empty_like(tensor, dtype=torch.bool))
        return torch.empty_like(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise AssertionError(_NOT_DIFFERENTIATED)


class _Recurrent(torch.autograd.Function):
    """cuDNN's recurrent layers keep input, result, first states and a reserve space."""

    @staticmethod
    def forward(
        ctx: Any, result_size: int, reserved: int, tensor: Tensor, *states: Tensor
    ) -> tuple[Tensor, ...]:
        result = tensor.new_empty((*tensor.shape[:-1], result_size))
        ctx.save_for_backward(tensor, result, *states, tensor.new_empty(reserved))
        return (result, *(torch.empty_like(state) for state in states))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise AssertionError(_NOT_DIFFERENTIATED)


_NOT_DIFFERENTIATED = "stand-ins are not differentiated, only asked what they keep"


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Any:
    return _Attention.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]


def _dropout(tensor: Tensor, p: float, train: bool) -> Any:
    if not train or p == 0.0:
        return NotImplemented
    return _Dropout.apply(tensor)  # type: ignore[no-untyped-call]


def _recurrent(kind: str) -> Callable[..., Any]:
    def run(
        tensor: Tensor,
        states: Tensor | Sequence[Tensor],
        weights: Any,
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool = False,
    ) -> Any:
        if not isinstance(has_biases, bool):
            return NotImplemented  # the overload for packed sequences
        given = (states,) if isinstance(states, Tensor) else tuple(states)
        directions = 2 if bidirectional else 1
        # With a projection (LSTM) the hidden state is smaller than the cell state.
        result_size = given[0].shape[-1] * directions
        steps = tensor[..., 0].numel()
        reserved = _RESERVED[kind] * steps * given[-1].shape[-1] * directions * num_layers
        return _Recurrent.apply(result_size, reserved, tensor, *given)  # type: ignore[no-untyped-call]

    return run


STAND_INS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "scaled_dot_product_attention": _attention,
        "dropout": _dropout,
        "lstm": _recurrent("lstm"),
        "gru": _recurrent("gru"),
    }
)
