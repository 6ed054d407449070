"""FLOPs of the forward pass of operators that do matrix products; a multiplication and an addition count as
two.

Formulas as in ``torch.utils.flop_counter`` (whose registry covers the decomposed operators; exported graphs
keep the composite ones): products, convolutions, attention without regard to causality; recurrent layers by
their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType

Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]


def _by_first_columns(inputs: Shapes, outputs: Shapes) -> int:
    """``linear``, ``mm``, ``bmm``, ``matmul``: every output element is a dot product along the first's
    last dim."""
    return 2 * prod(outputs[0]) * inputs[0][-1]


def _by_second_columns(inputs: Shapes, outputs: Shapes) -> int:
    """``addmm``, ``baddbmm``: (bias, first, second)."""
    return 2 * prod(outputs[0]) * inputs[1][-1]


def _grouped_mm(inputs: Shapes, outputs: Shapes) -> int:
    """Tokens ``(T, K)`` by experts ``(E, K, N)``: each token meets one expert."""
    return 2 * prod(outputs[0]) * inputs[0][-1]


def _convolution(inputs: Shapes, outputs: Shapes) -> int:
    """Weight ``(out, in / groups, *kernel)``: every output element is a dot product with one filter."""
    return 2 * prod(outputs[0]) * prod(inputs[1][1:])


def _transposed_convolution(inputs: Shapes, outputs: Shapes) -> int:
    """Weight ``(in, out / groups, *kernel)``: every input element is spread over one filter."""
    return 2 * prod(inputs[0]) * prod(inputs[1][1:])


def _attention(inputs: Shapes, outputs: Shapes) -> int:
    """Queries ``(..., heads, seq, dim)``: scores, and their product with the values."""
    query, key, value = inputs[:3]
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(inputs: Shapes, outputs: Shapes) -> int:
    """Every step multiplies the input and the state with all weight matrices."""
    steps = prod(inputs[0][:-1])
    matrices = [shape for shape in inputs[1:] if len(shape) == 2]
    return 2 * steps * sum(prod(shape) for shape in matrices)


FLOPS: Mapping[str, Callable[[Shapes, Shapes], int]] = MappingProxyType(
    {
        **dict.fromkeys(("linear", "mm", "bmm", "matmul", "einsum"), _by_first_columns),
        **dict.fromkeys(("addmm", "baddbmm"), _by_second_columns),
        **dict.fromkeys(("grouped_mm", "_grouped_mm"), _grouped_mm),
        **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
        **dict.fromkeys(
            ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution
        ),
        "scaled_dot_product_attention": _attention,
        **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    }
)


def forward_flops(name: str, inputs: Shapes, outputs: Shapes) -> int:
    """FLOPs of one call on tensors of these shapes (tensor arguments in flat order); 0 where there is no
    product."""
    formula = FLOPS.get(name)
    return formula(inputs, outputs) if formula else 0
