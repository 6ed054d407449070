"""The rule table: which family an operator belongs to. It serves the ILP and the lowering alike."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from functools import cache

import torch
from torch import fx

from autopar.sharding.aliasing import is_mutable
from autopar.sharding.placement import PARTIAL
from autopar.sharding.rule import Rule, replicated
from autopar.sharding.rules import (
    attention,
    convolutions,
    indexing,
    losses,
    norms,
    pieces,
    pointwise,
    products,
    recurrent,
    reductions,
    views,
)
from autopar.sharding.rules.operator import Operator

Family = Callable[[Operator], Iterator[Rule]]

# Operators by family: ``packet`` names every overload, ``packet.overload`` one.
_FAMILIES: tuple[tuple[Family, str], ...] = (
    (products.linear, "linear"),
    (products.matmul, "matmul mm bmm"),
    (products.addmm, "addmm baddbmm"),
    (products.einsum, "einsum"),
    (views.reshape, "reshape view.default _unsafe_view flatten.using_ints unflatten.int"),
    (views.permute, "permute transpose.int swapaxes swapdims.default t mT numpy_T"),
    (views.movedim, "movedim moveaxis"),
    (views.unsqueeze, "unsqueeze"),
    (views.squeeze, "squeeze.default squeeze.dim squeeze.dims"),
    (views.expand, "expand"),
    (views.broadcast_tensors, "broadcast_tensors"),
    (views.expand_as, "expand_as"),
    (pieces.slice_, "slice.Tensor narrow"),
    (pieces.select, "select.int"),
    (pieces.split, "split.Tensor split_with_sizes chunk"),
    (pieces.unbind, "unbind.int"),
    (pieces.cat, "cat.default concat.default concatenate.default"),
    (pieces.stack, "stack"),
    (pieces.pad, "pad constant_pad_nd"),
    (pieces.repeat, "repeat"),
    (pieces.repeat_interleave, "repeat_interleave.self_int"),
    (pieces.other_dims_linear, "roll flip cumsum.default"),
    (
        pieces.other_dims,
        "softmax.int log_softmax.int _softmax _log_softmax cumprod.default logcumsumexp.default",
    ),
    (pieces.triangle, "tril triu"),
    (norms.layer_norm, "layer_norm rms_norm native_layer_norm"),
    (norms.group_norm, "group_norm"),
    (norms.batch_norm, "batch_norm"),
    (norms.instance_norm, "instance_norm"),
    (
        reductions.reduction,
        "sum.default sum.dim_IntList mean.default mean.dim amax amin prod.default prod.dim_int "
        "var.correction var.dim std.correction std.dim logsumexp.default any.default any.dim "
        "all.default all.dim argmax argmin max.default max.dim min.default min.dim "
        "linalg_vector_norm norm.ScalarOpt_dim",
    ),
    (attention.scaled_dot_product_attention, "scaled_dot_product_attention"),
    (losses.cross_entropy, "cross_entropy_loss"),
    (losses.nll_loss, "nll_loss nll_loss_nd nll_loss2d"),
    (
        losses.elementwise_loss,
        "mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits "
        "kl_div soft_margin_loss",
    ),
    (
        convolutions.convolution,
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d.input conv_transpose3d.input convolution",
    ),
    (
        convolutions.pooling,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d max_pool2d_with_indices "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d",
    ),
    (recurrent.recurrent, "lstm.input gru.input rnn_tanh.input rnn_relu.input"),
    (indexing.embedding, "embedding"),
    (indexing.index, "index.Tensor"),
    (indexing.index_select, "index_select"),
    (indexing.gather_positions, "gather"),
    (indexing.gather, "scatter.src scatter.value scatter_add scatter_reduce.two"),
    (indexing.ordering, "sort.default sort.stable topk argsort.default argsort.stable"),
    (indexing.difference, "diff"),
    (indexing.one_hot, "one_hot"),
    (indexing.new_like, "new_zeros new_ones new_empty new_full"),
    (pointwise.like, "zeros_like ones_like full_like empty_like"),
)


@cache
def families_by_name() -> Mapping[str, Family]:
    """Family by operator as the table names it: ``linear`` for all overloads, ``sum.default`` for one."""
    return {name: family for family, names in _FAMILIES for name in names.split()}


def family_of(target: object) -> Family | None:
    """The function that lists the rules of ``target``, or None: it then runs replicated."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    packet = target._schema.name.removeprefix("aten::")
    for name in (f"{packet}.{target._overloadname}", packet):
        if name in families_by_name():
            return families_by_name()[name]
    return pointwise.pointwise if pointwise.is_pointwise(target) else None


def has_rules(target: object) -> bool:
    """Whether the table knows any way but the replicated one to run ``target``."""
    return target is operator.getitem or family_of(target) is not None


def strategies(node: fx.Node, degree: int, fused: frozenset[int] = frozenset()) -> tuple[Rule, ...]:
    """Every way to run ``node`` on a tensor axis of ``degree`` ranks, the replicated one first.

    Args:
        node: a ``call_function`` node with ``meta["val"]`` on itself and on its arguments.
        degree: size of the tensor axis, at least 2.
        fused: numbers of equal parts (beyond 1) inside which a dim may be sharded.
    """
    op = Operator(node, degree, fused)
    fallback = replicated(len(op.tensors))
    if is_mutable(node.target):
        return (fallback,)
    if node.target is operator.getitem:
        return (fallback, *_elements(op))
    family = family_of(node.target)
    if family is None or not op.tensors:
        return (fallback,)
    found: dict[str, Rule] = {str(fallback): fallback}
    for rule in family(op):
        found.setdefault(str(rule), rule)
    return tuple(found.values())


def _elements(op: Operator) -> Iterator[Rule]:
    """An element of a tuple has the placement that the operator gave it."""
    if not isinstance(op.value, torch.Tensor):
        return
    for shard in op.shards(op.output_shape):
        yield Rule((shard,), shard)
    if op.value.is_floating_point():
        yield Rule((PARTIAL,), PARTIAL)
