"""Models that convert themselves while they are built: the plan says dtype and device."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autopar.capture.capture import capture
from autopar.capture.conversions import no_conversions
from autopar.capture.target import ModelSource, source_from_functions
from tests.capture.chain_runner import assert_same_as_eager

CONVERSIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to a device": lambda model: model.to("cpu"),
    "to a dtype": lambda model: model.to(torch.bfloat16),
    "to device and dtype": lambda model: model.to(device="cuda", dtype=torch.float16),
    "float": lambda model: model.float(),
    "double": lambda model: model.double(),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "cuda": lambda model: model.cuda(),
}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.rows = nn.GRU(4, 4, batch_first=True)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(self.first(x)[:, None])[0][:, 0]
        return self.last(self.norm(rows)).square().mean()


def source_of(convert: Callable[[nn.Module], nn.Module]) -> ModelSource:
    return source_from_functions(lambda: convert(Tied()), lambda size: {"x": torch.randn(size, 4)})


@pytest.mark.parametrize("name", CONVERSIONS)
def test_the_plan_says_the_dtype_and_ties_are_kept(name: str) -> None:
    graph = capture(source_of(CONVERSIONS[name])).at(2)
    assert {spec.spec.dtype for spec in graph.parameters.values()} == {torch.float32}
    assert graph.parameters["first.weight"].aliases == ("last.weight",)
    assert graph.fingerprint == capture(source_of(lambda model: model)).at(2).fingerprint


def test_chain_equals_a_module_that_converts_a_part_of_itself() -> None:
    def convert(model: nn.Module) -> nn.Module:
        model.first = model.first.double()
        return model

    assert_same_as_eager(capture(source_of(convert), torch.float64), 3)


def test_modules_convert_again_afterwards() -> None:
    with no_conversions():
        assert nn.Linear(2, 2).double().weight.dtype is torch.float32
        assert nn.Linear(2, 2).to(torch.cfloat).weight.dtype is torch.complex64
    assert nn.Linear(2, 2).double().weight.dtype is torch.float64
