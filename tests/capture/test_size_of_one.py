"""Models that are another one for a single sample: the graph of that size is their own."""

import pytest
import torch
from torch import Tensor, nn

from autopar.capture.capture import capture
from autopar.capture.export import export_model
from autopar.capture.target import ModelSource, source_from_functions
from tests.capture.chain_runner import assert_same_as_eager
from tests.capture.models import small_capture


class Compares(nn.Module):
    """Doubles a sample that is alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def alone(self, x: Tensor) -> bool:
        return x.shape[0] == 1

    def forward(self, x: Tensor) -> Tensor:
        if self.alone(x):
            x = x * 2
        return self.linear(x).square().mean()


class ComparesTokens(Compares):
    """Compares a product of sizes."""

    def alone(self, x: Tensor) -> bool:
        return not x.shape[0] * x.shape[1] > 4


class Truth(Compares):
    """Takes a size for a condition."""

    def alone(self, x: Tensor) -> bool:
        return not x.shape[0] - 1


class Squeezes(Compares):
    """Drops every dim of size one, and counts the dims that are left."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.linear(x).mean(1, keepdim=True).squeeze()
        return weights.square().mean() * (1 + weights.dim())


class SqueezesFirst(Compares):
    """Drops the first dim, where it may."""

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.linear(x).squeeze(0)
        return squeezed.square().mean() * squeezed.dim()


class SqueezesLast(Compares):
    """Drops a dim that has size one at every size."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).mean(1, keepdim=True).squeeze(1).square().mean()


def source_of(model: type[nn.Module]) -> ModelSource:
    return source_from_functions(model, lambda size: {"x": torch.randn(size, 4)})


@pytest.mark.parametrize("model", [Compares, ComparesTokens, Truth, Squeezes, SqueezesFirst])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_model_that_asks_for_one_sample_is_right_at_every_size(model: type[nn.Module], size: int) -> None:
    captured = capture(source_of(model), torch.float64)
    assert captured.dynamic
    assert_same_as_eager(captured, size)


def test_others_keep_their_graph_at_size_one() -> None:
    assert export_model(source_of(SqueezesLast), torch.float32, None).holds_for(1)
    assert not export_model(source_of(Squeezes), torch.float32, None).holds_for(1)


@pytest.mark.parametrize("name", ["gpt", "hf-llama", "hf-gpt2", "hf-t5", "hf-mixtral"])
def test_usual_models_are_the_same_for_one_sample(name: str) -> None:
    captured = small_capture(name)
    assert captured._dynamic is not None
    assert captured._dynamic.exported.holds_for(1)
    assert_same_as_eager(captured, 1, tolerance=1e-12)  # a sum of one sample may take another kernel
