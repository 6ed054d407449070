"""What some operators become on shards: masked look-up, cross entropy, random streams of their own.

Each takes the tensor axis first and then the arguments of the operator that it replaces, with local tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd.function import once_differentiable

from autopar.lower.axis import TensorAxis

_NONE, _MEAN = 0, 1  # torch's numbers for ``reduction``


def own_stream(axis: TensorAxis, op: OpOverload, *args: Any, **kwargs: Any) -> Any:
    """A random operator on a shard: every rank draws other numbers, and repeats them under recomputation."""
    device = next(a.device for a in args if isinstance(a, Tensor))
    with axis.own_stream(device):
        return op(*args, **kwargs)


def mean_of_shards(axis: TensorAxis, op: OpOverload, *args: Any, **kwargs: Any) -> Any:
    """A mean over equal pieces: each rank contributes its own mean divided by the number of ranks."""
    return op(*args, **kwargs) / axis.size


def embedding_vocab(
    axis: TensorAxis,
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
    look_up: Callable[..., Tensor] = F.embedding,
) -> Tensor:
    """Look-up in this rank's rows ``(vocabulary / size, hidden)``; tokens of other ranks give zeros. A
    token of no rank is an error, as without shards.

    Args:
        look_up: (rows, weight, padding_idx, sparse) -> rows of the weight.
    """
    assert not scale_grad_by_freq
    num_rows = weight.shape[0]
    first = axis.rank * num_rows
    local = indices - first
    foreign = _of_others(axis, indices, local, num_rows)
    local = local.masked_fill(foreign, 0)
    padding = padding_idx - first if padding_idx >= 0 and 0 <= padding_idx - first < num_rows else None
    found = look_up(local, weight, padding_idx=padding, sparse=sparse)
    return found.masked_fill(foreign.unsqueeze(-1), 0)


def _of_others(axis: TensorAxis, indices: Tensor, local: Tensor, num_own: int) -> Tensor:
    """Which indices are another rank's. One that is nobody's stays outside of every rank's own, so that
    looking it up fails.

    Args:
        local: the indices less this rank's first.
    """
    is_own = (local >= 0) & (local < num_own)
    return (indices >= 0) & (indices < num_own * axis.size) & ~is_own


def cross_entropy_tokens(
    axis: TensorAxis,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = _MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross entropy over the tokens of all ranks: this rank's sum divided by the global count."""
    assert reduction == _MEAN
    if target.is_floating_point():
        count: Tensor | int = target.numel() // target.shape[1] * axis.size
    else:
        count = axis.all_reduce(_token_weight(logits, target, weight, ignore_index))
    total = F.cross_entropy(
        logits, target, weight, ignore_index=ignore_index, reduction="sum", label_smoothing=label_smoothing
    )
    return total / count


def nll_tokens(
    axis: TensorAxis,
    log_probabilities: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = _MEAN,
    ignore_index: int = -100,
) -> Tensor:
    """Mean negative log-likelihood over the tokens of all ranks."""
    assert reduction == _MEAN
    count = axis.all_reduce(_token_weight(log_probabilities, target, weight, ignore_index))
    total = F.nll_loss(log_probabilities, target, weight, ignore_index=ignore_index, reduction="sum")
    return total / count


def _token_weight(scores: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """Sum over this rank's tokens of what each counts: 1, its class weight, or 0 if ignored."""
    valid = target != ignore_index
    if weight is None:
        return valid.sum().to(scores.dtype if scores.dtype == torch.float64 else torch.float32)
    return (weight.detach()[target.masked_fill(~valid, 0)] * valid).sum()


class _CrossEntropyVocab(torch.autograd.Function):
    """Softmax over a sharded vocabulary with three reductions of one number a token: maximum, sum, target
    logit.

    As in Megatron-LM (Shoeybi et al. 2019, section 3), which fuses the loss with the parallel output so
    that logits are never gathered.
    """

    @staticmethod
    def forward(
        ctx: Any, axis: TensorAxis, logits: Tensor, target: Tensor, reduction: int, ignore_index: int
    ) -> Tensor:
        scores = logits.movedim(1, -1)  # (N, ..., classes / size)
        wide = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
        num_classes = wide.shape[-1]
        top = axis.all_reduce_max(wide.amax(-1))
        exponentials = (wide - top.unsqueeze(-1)).exp()
        total = axis.all_reduce(exponentials.sum(-1))
        valid = target != ignore_index
        local = target - axis.rank * num_classes
        foreign = _of_others(axis, target, local, num_classes) | ~valid
        local = local.masked_fill(foreign, 0)
        own = wide.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill(foreign, 0)
        chosen = axis.all_reduce(own)
        losses = (top + total.log() - chosen).masked_fill(~valid, 0)
        share = valid.to(wide.dtype)
        if reduction == _MEAN:
            share = share / valid.sum()
        exponentials /= total.unsqueeze(-1)
        ctx.save_for_backward(exponentials.to(scores.dtype), local, foreign, share)
        ctx.reduction = reduction
        result = losses if reduction == _NONE else (losses * share).sum()
        return result.to(logits.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None, None]:
        probabilities, local, foreign, share = ctx.saved_tensors
        ones = (~foreign).to(probabilities.dtype).unsqueeze(-1)
        difference = probabilities.scatter_add(-1, local.unsqueeze(-1), -ones)
        scale = (share * gradient).to(probabilities.dtype).unsqueeze(-1)
        return None, (difference * scale).movedim(-1, 1), None, None, None


def cross_entropy_vocab(
    axis: TensorAxis,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = _MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of logits ``(N, classes / size, ...)``, targets ``(N, ...)``; the same on all ranks."""
    assert weight is None and label_smoothing == 0.0
    return _CrossEntropyVocab.apply(axis, logits, target, reduction, ignore_index)  # type: ignore[no-any-return, no-untyped-call]
