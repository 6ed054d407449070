"""Graphs that write parameters, or read tensors whose values are not known when a model has no memory."""

import pytest
import torch
from torch import Tensor, nn

from autopar.capture.capture import capture
from autopar.capture.target import ModelSource, source_from_functions
from autopar.errors import CaptureError
from tests.capture.chain_runner import assert_same_as_eager


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.between(self.first(x)).square().mean()

    def between(self, x: Tensor) -> Tensor:
        return self.second(x)


class WritesParameter(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.second.weight.view(-1).mul_(0.9)
        return super().forward(x)


class WritesBuffer(Net):
    def between(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.mul_(0.9).add_(self.first.bias, alpha=0.1)
        return self.second(x)


class LimitsRows(Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4, max_norm=1.0)

    def between(self, x: Tensor) -> Tensor:
        return self.table((x > 0).long())


class ReadsData(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(x * self.first.weight.data.sum()).square().mean()


class TakesGradient(Net):
    def forward(self, x: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(self.first(x.requires_grad_()).sum(), x, create_graph=True)
        return self.second(slope).square().mean()


class HoldsList(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scales = [torch.randn(4)]

    def between(self, x: Tensor) -> Tensor:
        return self.second(x) * self.scales[0]


CASES: dict[type[nn.Module], str] = {
    WritesParameter: r"py:\d+: the forward changes the parameter 'second.weight'.*training script",
    LimitsRows: r"max_norm of the embedding changes the parameter 'table.weight'.*leave max_norm out",
    ReadsData: r"py:\d+: .*reads a tensor of shape \(4, 4\).*: `\.data` of a parameter \(say \.detach\(\)",
    TakesGradient: r"py:\d+: .*reads a tensor of shape \(4, 4\).*: a gradient taken in the forward",
    HoldsList: r"reads a tensor of shape \(4,\).*a tensor kept in a list.*register it as a buffer",
}


def source_of(model: type[nn.Module]) -> ModelSource:
    return source_from_functions(model, lambda size: {"x": torch.randn(size, 4)})


@pytest.mark.parametrize("model", CASES)
def test_refused_with_a_remedy(model: type[nn.Module]) -> None:
    with pytest.raises(CaptureError, match=CASES[model]):
        capture(source_of(model))


def test_buffers_may_be_written() -> None:
    assert_same_as_eager(capture(source_of(WritesBuffer), torch.float64), 2)


def test_a_boolean_mask_in_the_loss_is_placed_there() -> None:
    source = source_from_functions(
        lambda: nn.Sequential(nn.Linear(4, 4)),
        lambda n: {"input": torch.randn(n, 4)},
        loss=lambda output, batch: output[batch["input"] > 0].sum(),
    )
    with pytest.raises(CaptureError, match=r"test_graph_checks\.py:\d+: loss\(\): .*size of 'index'.*mask"):
        capture(source)


class Transformed(Net):
    def between(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda weight: torch.tanh(x @ weight))(self.second.weight.expand(3, 4, 4)).mean(0)


class FixedDtype(Net):
    def between(self, x: Tensor) -> Tensor:
        return self.second(x.to(torch.bfloat16))


def test_transforms_of_functions_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"torch\.vmap.*no operators; write.*torch\.einsum"):
        capture(source_of(Transformed))


def test_operands_of_different_dtypes_are_refused() -> None:
    message = r"py:\d+: .*multiplies torch\.bfloat16 and torch\.float32.*x\.to\(self\.weight\.dtype\)"
    with pytest.raises(CaptureError, match=message):
        capture(source_of(FixedDtype))
    assert capture(source_of(FixedDtype), torch.bfloat16).at(2).blocks
