"""Which results of a block selective recomputation keeps; the memory estimate and the runtime ask here.

Kept are the results of products with parameters (linear layers, convolutions, recurrent layers, embeddings),
of fused attention, and of collectives. Everything else is computed again in the backward pass: norms,
activation functions, dropout (with the same mask), softmax, products of two activations, which are large
where they are cheap (attention scores; Korthikanti et al. 2022, arXiv 2205.05198, section 5).

Not kept, and not computed again either, is what only kept operators read that do not need it: the summands of
a product whose sum is kept, and what is gathered for products that keep its shard (``lower.kept_shards``).
"""

from __future__ import annotations

import torch
from torch import fx
from torch._ops import OpOverload

from autopar.capture.operator_facts import argument_value
from autopar.sharding.aliasing import pinned_nodes

_PRODUCT_KERNELS = frozenset({"mm", "addmm", "mv", "addmv", "_grouped_mm"})
_ATTENTION_KERNELS = frozenset(
    {
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    }
)
_RECURRENT_KERNELS = frozenset({"_cudnn_rnn", "miopen_rnn", "mkldnn_rnn_layer"})
_CONVOLUTION_KERNELS = frozenset({"convolution"})
_EMBEDDING_KERNELS = frozenset({"embedding"})

# Kernels whose results can stand empty for a while: one tensor of a shape that the arguments tell.
_CAN_BE_EMPTY = _PRODUCT_KERNELS | _CONVOLUTION_KERNELS | _EMBEDDING_KERNELS

# Operator -> kernels beneath it whose results are kept. Products of batched tensors run as ``bmm``.
_KERNELS = {
    **dict.fromkeys(("linear", "matmul", "mm", "addmm", "_grouped_mm"), _PRODUCT_KERNELS),
    **dict.fromkeys(("embedding", "embedding_vocab"), _EMBEDDING_KERNELS),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _RECURRENT_KERNELS),
    **dict.fromkeys(("convolution", "conv1d", "conv2d", "conv3d"), _CONVOLUTION_KERNELS),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _CONVOLUTION_KERNELS),
    "scaled_dot_product_attention": _ATTENTION_KERNELS,
}


def kept_nodes(graph: fx.Graph) -> frozenset[fx.Node]:
    """The nodes of a lowered graph whose results are kept: none that share storage with what is written to
    in place.
    """
    given = _given_nodes(graph)
    return given - _unneeded(given)


def unneeded_nodes(graph: fx.Graph) -> frozenset[fx.Node]:
    """The nodes whose results are neither kept nor computed again, because nothing that runs again reads
    them.
    """
    return _unneeded(_given_nodes(graph))


def _given_nodes(graph: fx.Graph) -> frozenset[fx.Node]:
    written = pinned_nodes(graph)
    return frozenset(node for node in graph.nodes if node.name not in written and keeps_result(node))


def _unneeded(given: frozenset[fx.Node]) -> frozenset[fx.Node]:
    """Of the nodes that do not run again, those that no one reads who runs again or keeps what it read."""
    return frozenset(
        node
        for node in given
        if node.users and all(user in given and _forgets(node, user) for user in node.users)
    )


def _forgets(node: fx.Node, reader: fx.Node) -> bool:
    """Whether the backward pass of a reader does without the value of ``node``."""
    if "kept_shard" in node.meta:
        return reader.kwargs.get("kept") is node.meta["kept_shard"]["kept"]
    return reader.meta.get("lowered_from") is not None and is_forgotten(operator_name(node.target))


def is_forgotten(name: str) -> bool:
    """Whether what an operator computes need not be kept where only collectives that are kept read it."""
    kernels = _KERNELS.get(name, frozenset())
    return bool(kernels) and kernels <= _CAN_BE_EMPTY


def keeps_result(node: fx.Node) -> bool:
    """Whether the result of a node, of a block's graph or of a lowered one, is kept, unless written to."""
    if node.op != "call_function":
        return False
    if node.meta.get("lowered_from") is not None:
        return any(not transfer.backward for transfer in node.meta.get("collectives") or ())
    name = operator_name(node.target)
    if name not in _KERNELS or _draws(node):
        return False
    return name != "matmul" or _has_matrix(node)


def kept_kernels(target: object) -> frozenset[str]:
    """Names of the aten kernels whose results are kept when ``target``, a node's target, runs."""
    return _KERNELS.get(operator_name(target), frozenset())


def operator_name(target: object) -> str:
    """``linear`` of ``aten.linear.default``; the function's name of a local operator."""
    if isinstance(target, OpOverload):
        return str(target.overloadpacket.__name__) if target.namespace == "aten" else ""
    return str(getattr(target, "__name__", ""))


def _draws(node: fx.Node) -> bool:
    """Whether the operator draws random numbers: dropout inside attention or between recurrent layers."""
    if not isinstance(node.target, OpOverload) or argument_value(node, "train", True) is False:
        return False
    return any(argument_value(node, name, 0.0) != 0.0 for name in ("dropout_p", "dropout"))


def _has_matrix(node: fx.Node) -> bool:
    """Whether a ``matmul`` has a matrix among its operands: it then runs as one product of matrices."""
    values = [operand.meta.get("val") for operand in node.args if isinstance(operand, fx.Node)]
    return any(isinstance(value, torch.Tensor) and value.dim() <= 2 for value in values)
