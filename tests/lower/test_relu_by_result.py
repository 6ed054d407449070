"""The ReLU of compiled runs: torch's own values and gradients, and no mask between the passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autopar.lower.relu_by_result import relu

_VALUES = torch.tensor([-2.0, -0.0, 0.0, 3.0, float("nan"), float("inf"), float("-inf")], dtype=torch.float64)
_GRADIENTS = torch.tensor([1.5, -0.0, 0.0, -2.0, float("nan"), float("inf"), float("-inf")])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_are_those_of_torch(dtype: torch.dtype) -> None:
    values = _VALUES.to(dtype).repeat_interleave(len(_GRADIENTS))
    gradients = _GRADIENTS.to(dtype).repeat(len(_VALUES))
    found = []
    for function in (torch.relu, relu):
        x = values.clone().requires_grad_()
        y = function(x)
        (gradient,) = torch.autograd.grad(y, x, gradients)
        found.append((y.detach(), gradient))
    for expected, made in zip(*found, strict=True):
        assert made.dtype is dtype
        torch.testing.assert_close(made, expected, rtol=0, atol=0, equal_nan=True)


def test_nothing_but_the_result_is_saved() -> None:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    x = torch.randn(5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = relu(x * 1)
    assert {tensor.data_ptr() for tensor in saved if tensor.dim()} <= {y.data_ptr(), x.data_ptr()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch itself, while it compiles
def test_a_compiler_saves_no_mask() -> None:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    def run(x: Tensor, y: Tensor) -> Tensor:
        return relu(x.sin() + y)

    x, y = torch.randn(64, requires_grad=True), torch.randn(64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = torch.compile(run, fullgraph=True, dynamic=False)(x, y)
    assert torch.bool not in {tensor.dtype for tensor in saved}
    result.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, x.cos() * (x.sin() + y > 0))
