"""Time of one operator on one device: ``max(FLOPs / (peak x efficiency), bytes / bandwidth) + launch``.

The roofline of Williams et al. 2009 with the reachable rates of the cost model: matrix products by the size
of their cube, memory by what streaming reaches. Backward by family: a product has one product of the same
size for each operand that wants a gradient; fused attention does 2.5 times its forward's work (five products
for two: Dao 2023, FlashAttention-2, arXiv 2307.08691, section 2.3) at a lower rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import fx

from autopar.capture.model_graph import TensorSpec
from autopar.cost.flops import forward_flops
from autopar.cost.operator_traffic import COPY_IF_NEEDED, operator_traffic
from autopar.hardware.device import Device
from autopar.sharding.placement import local_shape
from autopar.sharding.rule import Rule
from autopar.sharding.rules.operator import tensor_arguments

_CONVERSIONS = "autopar.lower.collectives"
_PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16"}

# FlashAttention-2 on A100: 63% of peak backward against 73% forward (paper cited above, section 4.1).
_ATTENTION_BACKWARD_RATE = 0.86
_ATTENTION_BACKWARD_WORK = 2.5


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """One call on one rank.

    Attributes:
        forward_s: of the device.
        backward_s: of the device.
        flops: forward.
        forward_kernels: that the host dispatches.
        backward_kernels: likewise.
    """

    forward_s: float
    backward_s: float
    flops: int
    forward_kernels: int = 0
    backward_kernels: int = 0


FREE = OperatorCost(0.0, 0.0, 0)


def operator_name(target: object) -> str:
    """Name of what a node calls: ``linear`` of ``aten.linear.default``, ``axis.gather`` of a conversion."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target.overloadpacket.__name__)
    name = str(getattr(target, "__name__", target))
    return f"axis.{name}" if getattr(target, "__module__", "") == _CONVERSIONS else name


@lru_cache(maxsize=65536)
def operator_seconds(
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    requires_grad: tuple[bool, ...],
    device: Device,
    causal: bool = False,
) -> OperatorCost:
    """Time of one call on local tensors.

    Args:
        name: of the operator (``operator_name``).
        inputs: its tensor arguments in flat order, as one rank holds them; dtypes decide the precision.
        outputs: the tensors that it returns.
        requires_grad: whether each input wants a gradient; all False: there is no backward.
        causal: attention that skips the upper triangle, half of its work; ``flops`` counts all of it, as is
            the custom for MFU.
    """
    if not outputs:
        return FREE
    shapes = tuple(t.shape for t in inputs), tuple(t.shape for t in outputs)
    flops = forward_flops(name, *shapes)
    traffic = operator_traffic(name, inputs, outputs, requires_grad)
    if not flops:
        return OperatorCost(
            _seconds(0.0, traffic.forward_bytes, traffic.num_forward, device),
            _seconds(0.0, traffic.backward_bytes, traffic.num_backward, device),
            0,
            traffic.num_forward,
            traffic.num_backward,
        )
    if name == "scaled_dot_product_attention":
        return _attention(flops, inputs, outputs, requires_grad, device, causal)
    product_s = _product_s(flops, outputs[0], device)
    forward_s = _seconds(product_s, traffic.forward_bytes, traffic.num_forward, device)
    backward_s, kernels = _product_backward(flops, inputs, outputs, requires_grad, device)
    return OperatorCost(forward_s, backward_s, flops, traffic.num_forward, kernels)


def node_seconds(node: fx.Node, with_gradient: frozenset[str], device: Device) -> OperatorCost:
    """Time of a node of a lowered graph (or of a block's own graph), whose ``meta["val"]`` has local shapes.

    Args:
        with_gradient: names of the nodes whose value requires a gradient.
    """
    arguments = tensor_arguments(node)
    return _node_cost(
        node,
        tuple(_specs(a.meta["val"])[0] for a in arguments if _specs(a.meta["val"])),
        _specs(node.meta["val"]),
        tuple(a.name in with_gradient for a in arguments if _specs(a.meta["val"])),
        device,
    )


def rule_seconds(
    node: fx.Node, rule: Rule, degree: int, with_gradient: frozenset[str], device: Device
) -> OperatorCost:
    """Time of a node of a block's graph (whole shapes) when it runs by ``rule`` on ``degree`` ranks."""
    arguments = tensor_arguments(node)
    inputs = tuple(
        TensorSpec(local_shape(spec.shape, placement, degree), spec.dtype)
        for argument, placement in zip(arguments, rule.inputs, strict=True)
        for spec in _specs(argument.meta["val"])[:1]
    )
    outputs = tuple(
        TensorSpec(local_shape(spec.shape, rule.element(i), degree), spec.dtype)
        for i, spec in enumerate(_specs(node.meta["val"]))
    )
    needs = tuple(a.name in with_gradient for a in arguments if _specs(a.meta["val"]))
    return _node_cost(node, inputs, outputs, needs, device, rule.local)


def _node_cost(
    node: fx.Node,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    requires_grad: tuple[bool, ...],
    device: Device,
    local: str | None = None,
) -> OperatorCost:
    name = operator_name(node.target)
    if name in ("own_stream", "mean_of_shards"):
        name = operator_name(node.args[1])
    elif local is not None and local not in ("own_stream", "mean_of_shards"):
        name = local
    if _is_free(node, name):
        return FREE
    return specs_seconds(node, name, inputs, outputs, requires_grad, device)


def specs_seconds(
    node: fx.Node,
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    requires_grad: tuple[bool, ...],
    device: Device,
) -> OperatorCost:
    """Time of a node of a block's graph on tensors as one rank holds them, if anything is computed at all.

    Args:
        name: of the operator that runs; another than the node's where a rule replaces it.
    """
    if name == "dropout" and _is_free(node, name):
        return FREE
    if not any(t.dtype.is_floating_point for t in outputs):
        requires_grad = (False,) * len(requires_grad)
    causal = bool(node.kwargs.get("is_causal", False)) or (len(node.args) > 5 and node.args[5] is True)
    return operator_seconds(name, inputs, outputs, requires_grad, device, causal)


def _is_free(node: fx.Node, name: str) -> bool:
    """Whether no kernel runs: dropout that is off, a reshape of what is already laid out so."""
    if name == "dropout":
        values = [a for a in node.args if isinstance(a, bool | float | int)]
        return 0.0 in values or False in values
    if name not in COPY_IF_NEEDED:
        return False
    source, result = tensor_arguments(node)[0].meta["val"], node.meta["val"]
    if source.dtype != result.dtype:
        return False
    if name in ("reshape", "flatten", "unflatten"):
        return can_view(tuple(source.shape), tuple(source.stride()), tuple(result.shape))
    return bool(name != "contiguous" or source.is_contiguous())


@lru_cache(maxsize=4096)
def can_view(shape: tuple[int, ...], stride: tuple[int, ...], new_shape: tuple[int, ...]) -> bool:
    """Whether a tensor reshapes without a copy: each new dim lies within dims that are laid out as one.

    The rule of ``torch.Tensor.view``: old dims merge where ``stride[i] == stride[i + 1] * shape[i + 1]``.
    """
    dims = [(size, step) for size, step in zip(shape, stride, strict=True) if size != 1]
    if 0 in shape or not dims:
        return True
    runs = [dims[0][0]]
    for (_, outer_step), (size, step) in pairwise(dims):
        if outer_step == step * size:
            runs[-1] *= size
        else:
            runs.append(size)
    left = 1
    for size in new_shape:
        if left == 1:
            if size == 1:
                continue
            left = runs.pop(0)
        if left % size:
            return False
        left //= size
    return True


def _product_s(flops: float, result: TensorSpec, device: Device) -> float:
    """Time of a product with so many FLOPs; every element of the result sums over the same length."""
    reduction = flops / 2 / max(result.num_elements, 1)
    precision = _PRECISIONS.get(result.dtype, "fp32")
    rate = device.matmul_flops_per_s(precision, (flops / 2) ** (1 / 3), reduction)
    return flops / (rate / 2 if result.dtype is torch.float64 else rate)


def _product_backward(
    flops: float,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    requires_grad: tuple[bool, ...],
    device: Device,
) -> tuple[float, int]:
    """Seconds and kernels."""
    pairs = list(zip(inputs, requires_grad, strict=True))
    operand_bytes = sum(t.num_bytes for t, _ in pairs if len(t.shape) > 1)
    recurrent = sum(len(t.shape) > 1 for t, _ in pairs) > 3
    total_s, kernels = 0.0, 0
    for t, needs in pairs:
        if not needs:
            continue
        kernels += 1
        if len(t.shape) == 1:  # a bias: the sum over rows
            total_s += _seconds(0.0, outputs[0].num_bytes + t.num_bytes, 1, device)
            continue
        # The gradient of one operand is the product of the result's gradient with the other operands.
        share = 2 * t.num_bytes / operand_bytes if recurrent else 1.0
        product_s = _product_s(flops, t, device)
        total_s += share * _seconds(product_s, outputs[0].num_bytes + operand_bytes, 1, device)
    return total_s, kernels


def _attention(
    flops: int,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    requires_grad: tuple[bool, ...],
    device: Device,
    causal: bool,
) -> OperatorCost:
    precision = _PRECISIONS.get(inputs[0].dtype, "fp32")
    edge_s = _product_s(flops, outputs[0], device)
    full_s = flops / (device.peak(precision) * device.attention_efficiency)
    # Small problems fill the device no better than a product of their size does.
    work_s = max(full_s, edge_s) / (2 if causal else 1)
    moved = sum(t.num_bytes for t in inputs) + sum(t.num_bytes for t in outputs)
    backward_s, kernels = 0.0, 0
    if any(requires_grad):
        kernels = 3
        backward_work_s = work_s * _ATTENTION_BACKWARD_WORK / _ATTENTION_BACKWARD_RATE
        backward_s = _seconds(backward_work_s, 3 * moved, kernels, device)
    return OperatorCost(_seconds(work_s, moved, 1, device), backward_s, flops, 1, kernels)


def _seconds(product_s: float, num_bytes: int, num_kernels: int, device: Device) -> float:
    if not num_kernels:
        return 0.0
    moving_s = num_kernels * device.memory_s(num_bytes / num_kernels)
    return max(product_s, moving_s) + num_kernels * device.launch_s


def _specs(value: object) -> tuple[TensorSpec, ...]:
    """Shapes and dtypes of a fake value: a tensor, or a tuple of tensors."""
    tensors = value if isinstance(value, tuple | list) else (value,)
    return tuple(TensorSpec(tuple(t.shape), t.dtype) for t in tensors if isinstance(t, torch.Tensor))
