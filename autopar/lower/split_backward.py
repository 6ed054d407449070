"""Programs whose backward pass comes in two halves: gradients of the inputs at once, those of weights later.

Zero-bubble schedules (Qi et al. 2024, arXiv 2401.10241) run the two halves at different times. Here the
products with a weight (linear, addmm, matmul, convolution, embedding) become functions whose backward pass
computes the gradient of the input and leaves the gradient of the weight in a queue. All else, the small
gradients of norms and biases among it, is done with the first half. So the first half is an ordinary backward
pass of the whole stage: nothing that needs it whole (values that skip blocks, parameters that several layers
read, recomputation) goes wrong.

A weight is left for later where the program gets it from a parameter by views and conversions alone: nodes of
the autograd graph that save nothing, so that they can be run once for each half.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, fx

from autopar.lower import local_operators
from autopar.lower.products import addmm, linear, matmul
from autopar.lower.weight_gradients import convolution, embedding, embedding_vocab

_aten = torch.ops.aten

# What stands for an operator, and the position of the weight among the operator's arguments.
_LATER: dict[Any, tuple[Callable[..., Tensor], int]] = {
    _aten.linear.default: (linear, 1),
    _aten.addmm.default: (addmm, 2),
    _aten.mm.default: (matmul, 1),
    _aten.matmul.default: (matmul, 1),
    _aten.conv1d.default: (convolution, 1),
    _aten.conv2d.default: (convolution, 1),
    _aten.conv3d.default: (convolution, 1),
    _aten.embedding.default: (embedding, 0),
    local_operators.embedding_vocab: (embedding_vocab, 1),
    # These have a place for the queue already.
    linear: (linear, 2),
    matmul: (matmul, 2),
    addmm: (addmm, 3),
}
_WITH_PLACE = (linear, matmul, addmm)
_PRODUCTS = (_aten.addmm.default, _aten.mm.default, _aten.matmul.default, matmul, addmm)
_CONVOLUTIONS = (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default)
_VIEWS = frozenset(
    {
        _aten.t.default,
        _aten.transpose.int,
        _aten.permute.default,
        _aten.view.default,
        _aten.unsqueeze.default,
        _aten.squeeze.dim,
    }
)


def split_backward(program: fx.GraphModule, parameters: Collection[str]) -> fx.GraphModule:
    """The same program with another placeholder, after the axis, for a ``WeightGradients`` or None.

    Args:
        program: a lowered block.
        parameters: names of its placeholders that are parameters.
    """
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    queue: fx.Node | None = None
    for node in program.graph.nodes:
        new = values[node] = graph.node_copy(node, values.__getitem__)
        if queue is None:
            queue = graph.placeholder("weight_gradients")
        elif node.op == "call_function" and _can_wait(node, parameters):
            new.target = _LATER[node.target][0]
            new.args = (queue, *(new.args[1:] if node.target in _WITH_PLACE else new.args))
    graph.lint()
    return fx.GraphModule(torch.nn.Module(), graph)


def _can_wait(node: fx.Node, parameters: Collection[str]) -> bool:
    if node.target not in _LATER or (node.kwargs and node.target not in _WITH_PLACE):
        return False
    position = _LATER[node.target][1]
    weight = node.args[position]
    if not isinstance(weight, fx.Node) or not _is_parameter(weight, parameters):
        return False
    if node.target in _PRODUCTS:
        factor = node.args[position - 1]
        assert isinstance(factor, fx.Node)
        return weight.meta["val"].dim() == 2 and not _is_parameter(factor, parameters)
    if node.target in _CONVOLUTIONS:
        image = node.args[0]
        assert isinstance(image, fx.Node)
        return bool(image.meta["val"].dim() == weight.meta["val"].dim())  # with a batch dim
    # Embeddings: gradients scaled by frequency, or sparse ones, are the operator's own affair.
    return node.target in (_aten.linear.default, linear) or not any(node.args[position + 3 :])


def _is_parameter(value: fx.Node, parameters: Collection[str]) -> bool:
    """Whether a value is a parameter, but for views and conversions between placements."""
    while value.op == "call_function":
        if value.target in _VIEWS:
            source = value.args[0]
        elif "lowered_from" in value.meta:
            source = value.args[1]  # after the axis
        else:
            return False
        assert isinstance(source, fx.Node)
        value = source
    return value.op == "placeholder" and value.name in parameters
