"""Bytes that an operator moves through device memory, forward and backward, by family.

Families follow the kernels that eager PyTorch runs: each call reads its inputs and writes its outputs once
unless said otherwise here; what autograd keeps is read again by the backward pass. Composite calls count
their kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

from autopar.capture.model_graph import TensorSpec

Specs = tuple[TensorSpec, ...]

# Results that are views of their argument: no kernel runs. Some of them copy in the backward pass (below).
VIEWS = frozenset(
    [
        "view",
        "_unsafe_view",
        "transpose",
        "permute",
        "t",
        "mT",
        "numpy_T",
        "swapaxes",
        "swapdims",
        "movedim",
        "moveaxis",
        "unsqueeze",
        "squeeze",
        "expand",
        "expand_as",
        "slice",
        "narrow",
        "select",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "getitem",
        "detach",
        "alias",
        "unfold",
        "diagonal",
        "view_as",
        "axis.copy_to",
        "as_strided",
    ]
)
# Views whose backward writes a gradient of the whole argument: zeros with the piece copied in, or a
# concatenation.
PIECES = frozenset(
    ["slice", "narrow", "select", "split", "split_with_sizes", "chunk", "unbind", "unfold", "diagonal"]
)
# Their backward calls make one more tensor of the size of the logits: nll's zeros before log-softmax's
# gradient.
WHOLE_TEMPORARY = frozenset({"cross_entropy_loss", "cross_entropy_tokens", "cross_entropy_vocab"})
# Calls that copy, some of them only when their argument is not laid out as the result must be.
COPY_IF_NEEDED = frozenset(["reshape", "flatten", "unflatten", "contiguous", "to", "_to_copy", "type_as"])
# Rows picked from a table: only the picked rows are read.
GATHERS = frozenset(["embedding", "embedding_vocab", "gather", "index", "index_select", "take_along_dim"])
# Sums pass their gradient on as it is.
SUMS = frozenset(["add", "sub", "neg", "add_", "sub_"])
# The backward pass reads the gradient and what was kept, and also reduces over rows for the weights.
NORMS = frozenset(
    ["layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm", "native_layer_norm"]
)
LOSSES = frozenset(
    ["cross_entropy_loss", "cross_entropy_tokens", "cross_entropy_vocab", "nll_loss_nd", "nll_tokens"]
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes moved, and kernels launched.

    Attributes:
        forward_bytes: of the forward call.
        backward_bytes: of its backward, without matrix products.
        num_forward: kernels.
        num_backward: kernels.
    """

    forward_bytes: int
    backward_bytes: int
    num_forward: int = 1
    num_backward: int = 1


NOTHING = Traffic(0, 0, 0, 0)


def operator_traffic(name: str, inputs: Specs, outputs: Specs, requires_grad: tuple[bool, ...]) -> Traffic:
    """Bytes of one call on local tensors.

    Args:
        name: of the operator, without overload.
        inputs: tensor arguments in flat order.
        outputs: tensors returned.
        requires_grad: whether each input wants a gradient.
    """
    read, written = sum(t.num_bytes for t in inputs), sum(t.num_bytes for t in outputs)
    wanted = sum(t.num_bytes for t, needs in zip(inputs, requires_grad, strict=True) if needs)
    grad = any(requires_grad)
    if name in VIEWS:
        if name in PIECES and grad:
            return Traffic(0, 2 * wanted, 0, 1)
        return NOTHING
    if name in GATHERS:
        indices = read - inputs[0].num_bytes if name != "embedding_vocab" else 2 * written
        if name == "embedding":
            indices = inputs[-1].num_bytes
        # The gradient of the table is written whole, zeros first.
        return Traffic(2 * written + indices, wanted + 3 * written if grad else 0, 1, 2 if grad else 0)
    if name in LOSSES:
        return _loss(name, inputs, grad)
    if name in SUMS:
        reduced = sum(
            t.num_bytes + written
            for t, needs in zip(inputs, requires_grad, strict=True)
            if needs and t.num_elements < outputs[0].num_elements
        )
        return Traffic(read + written, reduced, 1, 1 if reduced else 0)
    if name == "dropout":
        mask = outputs[0].num_elements
        return Traffic(read + written + mask, (2 * written + mask) if grad else 0, 1, 1 if grad else 0)
    if name in ("softmax", "log_softmax", "_softmax", "_log_softmax"):
        return Traffic(read + written, 3 * written if grad else 0, 1, 1 if grad else 0)
    if name in NORMS:
        passes = 2 if name == "batch_norm" else 1
        backward = 2 * (inputs[0].num_bytes + written) + wanted if grad else 0
        return Traffic(passes * read + written, backward, 1, 2 if grad else 0)
    if name in ("cat", "concat", "concatenate", "stack", "mean", "sum", "repeat", "clone"):
        return Traffic(read + written, written + wanted if grad else 0, 1, 1 if grad else 0)
    if name in COPY_IF_NEEDED or name.startswith("axis."):
        return Traffic(read + written, (read + written) if grad else 0, 1, 1 if grad else 0)
    kept = read
    return Traffic(read + written, (written + kept + wanted) if grad else 0, 1, 1 if grad else 0)


def _loss(name: str, inputs: Specs, grad: bool) -> Traffic:
    """Cross entropy: log-softmax writes what nll reads; backward writes zeros with ones, then the whole
    gradient."""
    logits = inputs[0].num_bytes
    if name in ("nll_loss_nd", "nll_tokens"):
        return Traffic(inputs[-1].num_bytes, logits if grad else 0, 1, 1 if grad else 0)
    if name == "cross_entropy_vocab":
        wide = inputs[0].num_elements * max(4, inputs[0].dtype.itemsize)
        # To fp32, maximum, difference, exponential, sum, division, cast back.
        return Traffic(logits + 8 * wide, 5 * logits if grad else 0, 8, 3 if grad else 0)
    return Traffic(2 * logits, 4 * logits if grad else 0, 2, 2 if grad else 0)
