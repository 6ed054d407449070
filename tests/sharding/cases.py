"""Calls whose rules are proved: every operator with rules occurs, in shapes that bring out all of them."""

from __future__ import annotations

import torch

from tests.sharding.single_operator import (
    Case,
    booleans,
    case,
    causal,
    fixed,
    integers,
    labels,
    positive,
    probabilities,
    real,
    statistic,
)

aten = torch.ops.aten

POINTWISE = [
    *(
        case(op, real(4, 8, 12))
        for op in (aten.neg.default, aten.relu.default, aten.gelu.default, aten.silu.default)
    ),
    *(
        case(op, real(4, 12))
        for op in (aten.tanh.default, aten.sigmoid.default, aten.exp.default, aten.abs.default)
    ),
    *(
        case(op, real(4, 12))
        for op in (aten.cos.default, aten.sin.default, aten.square.default, aten.erf.default)
    ),
    *(case(op, positive(4, 12)) for op in (aten.log.default, aten.sqrt.default, aten.rsqrt.default)),
    *(case(op, real(4, 12)) for op in (aten.clone.default, aten.contiguous.default, aten.detach.default)),
    *(case(op, real(4, 12)) for op in (aten.relu6.default, aten.selu.default, aten.alias.default)),
    case(aten.lift_fresh_copy.default, real(4)),
    case(aten.leaky_relu.default, real(4, 12), 0.2),
    case(aten.hardtanh.default, real(4, 12)),
    case(aten.clamp.default, real(4, 12), -0.5, 0.5),
    case(aten.to.dtype, real(4, 12), torch.float32),
    case(aten._to_copy.default, real(4, 12), dtype=torch.float32),
    case(aten.to.device, real(4, 12), torch.device("cpu"), torch.float32),
    case(aten.to.dtype, real(4, 12), torch.int64),
    case(aten.type_as.default, real(4, 12), real(4, 12)),
    case(aten.pow.Tensor_Scalar, real(4, 12), 3),
    *(case(op, real(4, 8, 12), real(8, 1)) for op in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor)),
    *(case(op, real(8, 1), real(4, 8, 12)) for op in (aten.add.Tensor, aten.mul.Tensor)),
    case(aten.add.Tensor, real(4, 12), real(4, 12), alpha=2),
    case(aten.add.Tensor, real(4, 12), 1.5),
    case(aten.mul.Tensor, real(4, 12), 1.5),
    case(aten.mul.Tensor, real(4, 12), real()),
    case(aten.mul.Tensor, real(4, 12), integers(5, 12)),
    case(aten.mul.Scalar, real(4, 12), 1.5),
    case(aten.div.Scalar, real(4, 12), 1.5),
    case(aten.div.Tensor, real(4, 8), positive(4, 1)),
    case(aten.div.Tensor, real(4, 8), 3.0),
    case(aten.floor_divide.default, integers(9, 8), 2),
    case(aten.minimum.default, real(4, 8), real(8)),
    case(aten.maximum.default, real(4, 8), real(8)),
    case(aten.min.other, real(4, 8), real(8)),
    case(aten.max.other, real(4, 8), real(8)),
    case(aten.where.self, booleans(4, 1), real(4, 8), real(8)),
    case(aten.where.ScalarOther, booleans(4, 1, 8), real(1, 4, 8), -1e9),
    case(aten.where.ScalarSelf, booleans(4, 8), 1.0, real(4, 8)),
    case(aten.where.Scalar, booleans(4, 8), 1.0, 2.0),
    case(aten.masked_fill.Scalar, real(4, 8), booleans(4, 1), 0.0),
    case(aten.masked_fill.Scalar, real(4, 8), booleans(4, 1), -1e9),
    case(aten.masked_fill.Tensor, real(4, 8), booleans(8), real()),
    *(case(op, integers(9, 4, 1), integers(9, 8)) for op in (aten.eq.Tensor, aten.le.Tensor, aten.lt.Tensor)),
    *(
        case(op, integers(9, 4, 8), 3)
        for op in (aten.eq.Scalar, aten.ne.Scalar, aten.ge.Scalar, aten.gt.Scalar)
    ),
    case(aten.lt.Scalar, integers(9, 4, 8), 3),
    case(aten.__and__.Tensor, booleans(4, 8), booleans(8)),
    case(aten.__or__.Tensor, booleans(4, 8), booleans(8)),
    case(aten.__xor__.Tensor, booleans(4, 8), booleans(8)),
    case(aten.logical_not.default, booleans(4, 8)),
    case(aten.prelu.default, real(4, 8, 4), real(8)),
    case(aten.prelu.default, real(4, 8), real(1)),
    case(aten.dropout.default, real(4, 8), 0.0, True),
    case(aten.dropout.default, real(4, 8), 0.5, False),
    case(aten.alpha_dropout.default, real(4, 8), 0.5, False),
    case(aten.zeros_like.default, real(4, 8)),
    case(aten.ones_like.default, integers(3, 4, 8)),
    case(aten.full_like.default, real(4, 8), 2.5),
]

PRODUCTS = [
    case(aten.linear.default, real(4, 8, 12), real(24, 12), real(24)),
    case(aten.linear.default, real(8, 12), real(24, 12)),
    case(aten.addmm.default, real(24), real(8, 12), real(12, 24)),
    case(aten.addmm.default, real(8, 1), real(8, 12), real(12, 24)),
    case(aten.mm.default, real(8, 12), real(12, 24)),
    case(aten.bmm.default, real(4, 8, 12), real(4, 12, 8)),
    case(aten.baddbmm.default, real(4, 1, 8), real(4, 8, 12), real(4, 12, 8)),
    case(aten.matmul.default, real(4, 8, 12), real(12, 8)),
    case(aten.matmul.default, real(4, 2, 8, 12), real(2, 12, 8)),
    case(aten.matmul.default, real(4, 1, 8, 12), real(4, 2, 12, 8)),
    case(aten.matmul.default, real(8, 12), real(4, 12, 8)),
    case(aten.einsum.default, "bhld,bhsd->bhls", [real(2, 4, 8, 12), real(2, 4, 8, 12)]),
    case(aten.einsum.default, "bld,de->ble", [real(4, 8, 12), real(12, 4)]),
]

VIEWS = [
    case(aten.reshape.default, real(4, 8, 12), [32, 12]),
    case(aten.reshape.default, real(32, 12), [4, 8, 12]),
    case(aten.reshape.default, real(4, 8, 12), [4, 8, 4, 3]),
    case(aten.reshape.default, real(2, 4, 24), [2, 4, 2, 12]),
    case(aten.reshape.default, real(2, 4, 24), [2, 4, 3, 4, 2]),
    case(aten.reshape.default, real(2, 4, 3, 8), [2, 4, 24]),
    case(aten.reshape.default, real(4, 2, 2, 8), [4, 4, 8]),
    case(aten.reshape.default, real(4, 1, 8), [-1]),
    case(aten.view.default, real(4, 8), [32]),
    case(aten._unsafe_view.default, real(4, 8), [32]),
    case(aten.flatten.using_ints, real(4, 8, 2, 2), 1),
    case(aten.flatten.using_ints, real(4, 4, 3), 0, 1),
    case(aten.unflatten.int, real(4, 24), 1, [3, -1]),
    case(aten.unflatten.int, real(8, 12), 0, [-1, 2]),
    case(aten.transpose.int, real(4, 8, 12), 1, 2),
    case(aten.swapaxes.default, real(4, 8, 12), 0, -1),
    case(aten.swapdims.default, real(4, 8, 12), 0, 1),
    case(aten.permute.default, real(4, 8, 12), [2, 0, 1]),
    case(aten.t.default, real(4, 8)),
    case(aten.mT.default, real(2, 4, 8)),
    case(aten.numpy_T.default, real(4, 8)),
    case(aten.movedim.int, real(4, 8, 12), 0, 2),
    case(aten.moveaxis.int, real(4, 8, 12), 0, 2),
    case(aten.movedim.intlist, real(4, 8, 12), [0, 2], [1, 0]),
    case(aten.unsqueeze.default, real(4, 8), 1),
    case(aten.unsqueeze.default, real(4, 8), -1),
    case(aten.squeeze.dim, real(4, 1, 8), 1),
    case(aten.squeeze.dim, real(2, 8), 0),
    case(aten.squeeze.default, real(1, 4, 1, 2)),
    case(aten.squeeze.dims, real(1, 4, 1, 2), [0, 2]),
    case(aten.expand.default, real(4, 1, 8), [4, 12, -1]),
    case(aten.expand.default, real(1, 8), [4, 4, 8]),
    case(aten.expand_as.default, real(4, 1), real(4, 8)),
    case(aten.broadcast_tensors.default, [real(4, 1), real(4, 8)]),
]

PIECES = [
    case(aten.slice.Tensor, real(4, 8), 1, 2, 6),
    case(aten.slice.Tensor, real(4, 8), 0, 0, 9223372036854775807),
    case(aten.slice.Tensor, real(4, 8), 1, -3),
    case(aten.narrow.default, real(4, 8), 1, 0, 8),
    case(aten.narrow.default, real(4, 8), 1, 2, 4),
    case(aten.select.int, real(4, 8, 2), 1, 3),
    case(aten.split.Tensor, real(4, 24), 8, 1),
    case(aten.split.Tensor, real(4, 24), 12, -1),
    case(aten.split_with_sizes.default, real(4, 24), [12, 8, 4], 1),
    case(aten.split_with_sizes.default, real(4, 24), [12, 12], 1),
    case(aten.chunk.default, real(4, 24), 2, -1),
    case(aten.unbind.int, real(4, 3, 8), 1),
    case(aten.cat.default, [real(4, 8), real(4, 8)], 1),
    case(aten.cat.default, [real(4, 1, 8), real(4, 4, 8)], 1),
    case(aten.concat.default, [real(4, 8), real(4, 8), real(4, 8)], -1),
    case(aten.concatenate.default, [real(4, 8), real(4, 8)], 0),
    case(aten.stack.default, [real(4, 8), real(4, 8)], 1),
    case(aten.pad.default, real(4, 4, 8), [1, 1]),
    case(aten.pad.default, real(4, 4, 8), [0, 0, 1, 2], "constant", 1.5),
    case(aten.pad.default, real(4, 4, 8), [1, 1], "reflect"),
    case(aten.constant_pad_nd.default, real(4, 8), [1, 0], 0.0),
    case(aten.repeat.default, real(4, 8), [2, 1, 3]),
    case(aten.repeat_interleave.self_int, real(4, 8), 3, 1),
    case(aten.roll.default, real(4, 8), [1], [1]),
    case(aten.flip.default, real(4, 8), [0]),
    case(aten.cumsum.default, real(4, 8), -1),
    case(aten.cumprod.default, real(4, 8), 0),
    case(aten.logcumsumexp.default, real(4, 8), 1),
    case(aten.softmax.int, real(4, 8, 12), -1),
    case(aten.log_softmax.int, real(4, 8, 12), 1),
    case(aten._softmax.default, real(4, 8), 1, False),
    case(aten._log_softmax.default, real(4, 8), 0, False),
    case(aten.tril.default, real(2, 4, 4)),
    case(aten.triu.default, real(2, 4, 4), 1),
]

NORMS = [
    case(aten.layer_norm.default, real(4, 8, 12), [12], real(12), real(12)),
    case(aten.layer_norm.default, real(4, 8, 12), [8, 12]),
    case(aten.native_layer_norm.default, real(4, 8, 12), [12], real(12), real(12), 1e-5),
    case(aten.rms_norm.default, real(4, 8, 12), [12], real(12)),
    case(aten.group_norm.default, real(4, 8, 3), 4, real(8), real(8)),
    case(aten.group_norm.default, real(4, 8, 3), 1, real(8), real(8)),
    case(aten.instance_norm.default, real(4, 8, 6), real(8), real(8), None, None, True, 0.1, 1e-5, False),
    case(
        aten.instance_norm.default,
        real(4, 8, 6),
        None,
        None,
        statistic(8),
        statistic(8),
        True,
        0.1,
        1e-5,
        False,
    ),
    case(
        aten.batch_norm.default,
        real(4, 8, 3, 3),
        real(8),
        real(8),
        statistic(8),
        statistic(8),
        True,
        0.1,
        1e-5,
        False,
    ),
    case(
        aten.batch_norm.default,
        real(4, 8, 4),
        real(8),
        real(8),
        statistic(8),
        statistic(8),
        False,
        0.1,
        1e-5,
        False,
    ),
    case(aten.batch_norm.default, real(4, 8), None, None, None, None, True, 0.1, 1e-5, False),
]

REDUCTIONS = [
    case(aten.sum.default, real(4, 8)),
    case(aten.sum.dim_IntList, real(4, 8, 12), [-1]),
    case(aten.sum.dim_IntList, real(4, 8, 12), [0, 2], True),
    case(aten.mean.default, real(4, 8)),
    case(aten.mean.dim, real(4, 8, 12), [-1], True),
    case(aten.mean.dim, real(4, 8, 12), [0, 1]),
    case(aten.amax.default, real(4, 8), [1]),
    case(aten.amin.default, real(4, 8), [1], True),
    case(aten.prod.default, real(4)),
    case(aten.prod.dim_int, real(4, 8), 1),
    case(aten.var.correction, real(4, 8), [1], correction=1),
    case(aten.var.dim, real(4, 8), [1]),
    case(aten.std.correction, real(4, 8), [0], correction=0, keepdim=True),
    case(aten.std.dim, real(4, 8), [1]),
    case(aten.logsumexp.default, real(4, 8), [1]),
    case(aten.any.dim, booleans(4, 8), 1),
    case(aten.any.default, booleans(4, 8)),
    case(aten.all.dim, booleans(4, 8), 1),
    case(aten.all.default, booleans(4, 8)),
    case(aten.argmax.default, real(4, 8), 1),
    case(aten.argmin.default, real(4, 8), 0),
    case(aten.max.dim, real(4, 8), 1),
    case(aten.min.dim, real(4, 8), 1, True),
    case(aten.max.default, real(4, 8)),
    case(aten.min.default, real(4, 8)),
    case(aten.linalg_vector_norm.default, real(4, 8), 2, [1]),
    case(aten.norm.ScalarOpt_dim, real(4, 8), 2, [1]),
]

_Q, _K = real(4, 8, 8, 4), real(4, 2, 8, 4)
ATTENTION = [
    case(
        aten.scaled_dot_product_attention.default, real(4, 4, 8, 4), real(4, 4, 8, 4), real(4, 4, 8, 4), *rest
    )
    for rest in (
        (),
        (None, 0.0, True),
        (causal(8, 8),),
        (causal(4, 1, 8, 8),),
        (causal(1, 1, 8, 8),),
        (causal(4, 1, 1, 8),),
        (real(1, 4, 8, 8),),
        (real(4, 4, 8, 8),),
        (real(4, 8, 8),),
    )
] + [
    case(aten.scaled_dot_product_attention.default, real(4, 8, 4), real(4, 4, 4), real(4, 4, 8), scale=0.3),
    case(aten.scaled_dot_product_attention.default, _Q, _K, _K, None, 0.0, True, enable_gqa=True),
    case(aten.scaled_dot_product_attention.default, real(4, 4, 4, 4), real(1, 4, 4, 4), real(1, 4, 4, 4)),
]

_CE = aten.cross_entropy_loss.default
LOSSES = [
    *(case(_CE, real(8, 12), labels(12, 8), None, reduction) for reduction in (0, 1, 2)),
    *(case(_CE, real(4, 12, 4), labels(12, 4, 4, ignored=3), None, reduction, 3) for reduction in (0, 1, 2)),
    *(case(_CE, real(8, 12), labels(12, 8), fixed(12), reduction) for reduction in (0, 1, 2)),
    case(_CE, real(8, 12), labels(12, 8), None, 1, -100, 0.1),
    case(_CE, real(8, 12), labels(12, 8), fixed(12), 1, -100, 0.1),
    *(case(_CE, real(8, 12), probabilities(8, 12), None, reduction) for reduction in (0, 1, 2)),
    case(_CE, real(4, 12, 2), probabilities(4, 12, 2), None, 1, -100, 0.1),
    case(_CE, real(12), integers(12)),
    case(aten.nll_loss_nd.default, real(8, 12), labels(12, 8)),
    case(aten.nll_loss_nd.default, real(8, 12), labels(12, 8), fixed(12), 1),
    case(aten.nll_loss_nd.default, real(4, 12, 4), labels(12, 4, 4), None, 2),
    case(aten.nll_loss.default, real(8, 12), labels(12, 8)),
    case(aten.nll_loss2d.default, real(4, 12, 4, 2), labels(12, 4, 4, 2)),
    *(case(aten.mse_loss.default, real(4, 8), real(4, 8), reduction) for reduction in (0, 1, 2)),
    case(aten.mse_loss.default, real(8), real(8)),
    case(aten.l1_loss.default, real(4, 8), real(4, 8)),
    case(aten.smooth_l1_loss.default, real(4, 8), real(4, 8)),
    case(aten.huber_loss.default, real(4, 8), real(4, 8)),
    case(aten.kl_div.default, real(4, 8), positive(4, 8)),
    case(aten.soft_margin_loss.default, real(4, 8), fixed(4, 8)),
    case(aten.binary_cross_entropy.default, positive(4, 8), fixed(4, 8), fixed(8)),
    case(aten.binary_cross_entropy_with_logits.default, real(4, 8), positive(4, 8), None, fixed(8)),
]

CONVOLUTIONS = [
    case(aten.conv1d.default, real(4, 8, 6), real(12, 8, 3), real(12)),
    case(aten.conv2d.default, real(4, 8, 5, 5), real(12, 8, 3, 3), real(12), [2, 2], [1, 1]),
    case(aten.conv2d.default, real(4, 8, 4, 4), real(8, 1, 3, 3), real(8), [1, 1], [1, 1], [1, 1], 8),
    case(aten.conv2d.default, real(4, 8, 4, 4), real(16, 2, 3, 3), None, [1, 1], [1, 1], [1, 1], 4),
    case(aten.conv2d.padding, real(4, 8, 4, 4), real(12, 8, 3, 3), None, [1, 1], "same"),
    case(aten.conv1d.padding, real(4, 8, 4), real(12, 8, 3), None, [1], "valid"),
    case(aten.conv3d.default, real(4, 4, 3, 3, 3), real(8, 4, 2, 2, 2), real(8)),
    case(aten.conv3d.padding, real(4, 4, 3, 3, 3), real(8, 4, 2, 2, 2), None, [1, 1, 1], "same"),
    case(aten.conv_transpose1d.default, real(4, 8, 4), real(8, 12, 3), real(12)),
    case(aten.conv_transpose2d.input, real(4, 8, 3, 3), real(8, 12, 2, 2), real(12), [2, 2]),
    case(
        aten.conv_transpose2d.input, real(4, 8, 3, 3), real(8, 3, 2, 2), real(12), [2, 2], [0, 0], [0, 0], 4
    ),
    case(aten.conv_transpose3d.input, real(4, 4, 2, 2, 2), real(4, 8, 2, 2, 2), real(8)),
    case(aten.convolution.default, real(4, 8, 4), real(12, 8, 3), real(12), [1], [1], [1], False, [0], 1),
    case(aten.convolution.default, real(4, 8, 4), real(8, 12, 3), real(12), [1], [1], [1], True, [0], 1),
    case(aten.max_pool1d.default, real(4, 8, 6), [2]),
    case(aten.max_pool2d.default, real(4, 8, 6, 6), [3, 3], [2, 2], [1, 1]),
    case(aten.max_pool3d.default, real(4, 2, 4, 4, 4), [2, 2, 2]),
    case(aten.avg_pool1d.default, real(4, 8, 6), [2]),
    case(aten.avg_pool2d.default, real(4, 8, 4, 4), [2, 2]),
    case(aten.avg_pool3d.default, real(4, 2, 4, 4, 4), [2, 2, 2]),
    case(aten.adaptive_avg_pool1d.default, real(4, 8, 4), [2]),
    case(aten.adaptive_avg_pool2d.default, real(4, 8, 4, 4), [1, 1]),
    case(aten.adaptive_avg_pool3d.default, real(4, 2, 4, 4, 4), [2, 2, 2]),
    case(aten.adaptive_max_pool2d.default, real(4, 8, 4, 4), [2, 2]),
    case(aten.max_pool2d_with_indices.default, real(4, 8, 4, 4), [2, 2]),
    case(aten.upsample_nearest1d.default, real(4, 8, 4), [8]),
    case(aten.upsample_nearest2d.default, real(4, 8, 4, 4), [8, 8]),
    case(aten.upsample_nearest3d.default, real(4, 2, 2, 2, 2), [4, 4, 4]),
    case(aten.upsample_bilinear2d.default, real(4, 8, 4, 4), [8, 8], False),
    case(aten.upsample_bicubic2d.default, real(4, 8, 4, 4), [8, 8], False),
]

_GATES = {aten.lstm.input: 4, aten.gru.input: 3, aten.rnn_tanh.input: 1, aten.rnn_relu.input: 1}


def _recurrent(target: object, batch_first: bool) -> Case:
    gates = _GATES[target]  # type: ignore[index]
    x = real(4, 3, 2) if batch_first else real(3, 4, 2)
    state = real(1, 4, 2)
    weights = [real(2 * gates, 2), real(2 * gates, 2), real(2 * gates), real(2 * gates)]
    hidden = [state, state] if target is aten.lstm.input else state
    return case(target, x, hidden, weights, True, 1, 0.0, True, False, batch_first)


RECURRENT = [_recurrent(target, batch_first) for target in _GATES for batch_first in (True, False)]

INDEXING = [
    case(aten.embedding.default, real(12, 8), integers(12, 4, 6)),
    case(aten.embedding.default, real(12, 8), integers(12, 4), 3),
    case(aten.embedding.default, real(12, 8), integers(12, 4, 2), 11),
    case(aten.embedding.default, real(12, 8), integers(12, 4), -1, True),
    case(aten.index.Tensor, real(4, 8, 4), [None, integers(8, 4, 2)]),
    case(aten.index.Tensor, real(4, 8), [integers(4, 4, 1, 1), integers(8, 1, 8)]),
    case(aten.index.Tensor, real(8, 4), [integers(8, 12)]),
    case(aten.index.Tensor, real(4, 8, 4), [integers(4, 2), None, integers(4, 2)]),
    case(aten.index_select.default, real(4, 8), 1, integers(8, 12)),
    case(aten.gather.default, real(4, 8), 1, integers(8, 4, 12)),
    case(aten.gather.default, real(4, 8), 1, integers(8, 2, 4)),
    case(aten.scatter.src, real(4, 8), 1, integers(1, 4, 1), real(4, 1)),
    case(aten.scatter.value, real(4, 8), 1, integers(8, 4, 1), 2.0),
    case(aten.scatter_add.default, real(4, 8), 1, integers(8, 4, 4), real(4, 4)),
    case(aten.scatter_reduce.two, real(4, 8), 1, integers(8, 4, 4), real(4, 4), "sum"),
    case(aten.sort.default, real(4, 8)),
    case(aten.sort.stable, real(4, 8), stable=True, dim=0),
    case(aten.topk.default, real(4, 8), 2),
    case(aten.argsort.default, real(4, 8), 1),
    case(aten.argsort.stable, real(4, 8), stable=True, dim=1),
    case(aten.diff.default, integers(9, 4, 8), 1, -1, integers(9, 4, 1)),
    case(aten.one_hot.default, integers(6, 4, 2), 6),
    case(aten.new_zeros.default, real(4, 8), [3, 4]),
    case(aten.new_ones.default, booleans(4, 8), []),
    case(aten.new_full.default, real(4, 8), [4], 1.5),
]

CASES = [
    *POINTWISE,
    *PRODUCTS,
    *VIEWS,
    *PIECES,
    *NORMS,
    *REDUCTIONS,
    *ATTENTION,
    *LOSSES,
    *CONVOLUTIONS,
    *RECURRENT,
    *INDEXING,
]
