"""Python numbers computed from the batch size: a graph is used only at sizes for which it holds."""

import pytest
import torch
from torch import Tensor, nn

from autopar.capture.capture import capture
from autopar.capture.target import ModelSource, source_from_functions
from tests.capture.chain_runner import assert_same_as_eager
from tests.capture.models import small_capture


class Capacity(nn.Module):
    """Keeps as many rows as a float of the batch size says."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        kept = int(1.25 * x.shape[0] / 2)
        return self.linear(x)[:kept].square().sum()


class Chunks(Capacity):
    """Takes another way for large batches."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] * 3 > 500:
            x = x * 2
        return self.linear(x).square().mean()


def source_of(model: type[nn.Module]) -> ModelSource:
    return source_from_functions(model, lambda size: {"x": torch.randn(size, 4)})


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_a_number_computed_through_a_float_is_right_at_every_size(size: int) -> None:
    captured = capture(source_of(Capacity), torch.float64)
    assert not captured.dynamic
    assert_same_as_eager(captured, size)


@pytest.mark.parametrize("size", [3, 200])
def test_a_branch_on_the_size_is_right_on_both_sides(size: int) -> None:
    captured = capture(source_of(Chunks), torch.float64)
    assert captured.dynamic
    assert_same_as_eager(captured, size)


@pytest.mark.parametrize("name", ["gpt", "hf-t5", "hf-mixtral"])
def test_usual_models_have_no_conditions(name: str) -> None:
    captured = small_capture(name)
    assert captured._dynamic is not None
    assert captured._dynamic.exported.conditions == ()
